import dataclasses

import pytest
from data.kinds import Tokenizing
from support import pair, random_pairs

from orpo_exp.data.base import DataConfig, SourceData
from orpo_exp.data.pair_tokenizer import kept_lengths
from orpo_exp.data.tokenize import TokenizedData, prepare
from orpo_exp.models.tokenizers import bytes_tokenizer
from orpo_exp.schema import ConfigError, Refused
from orpo_exp.types import Message, PreferencePair

TURNS = (Message(role="user", content="Hi"),)


@pytest.fixture
def tokenizer():
    return bytes_tokenizer()


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("lengths", "max_length", "floor", "kept"),
    [
        ((100, 50, 60), 1024, 256, (100, 60)),  # all fits
        ((100, 1000, 900), 1024, 256, (100, 924)),  # TRL keeps 24 tokens of each answer
        ((100, 1024, 500), 1024, 256, (100, 924)),  # TRL keeps none
        ((900, 500, 300), 1024, 256, (524, 500)),  # the prompt goes first
        ((900, 1000, 300), 1024, 256, (256, 768)),  # down to the floor, then the answers
        ((5000, 5000, 1), 1024, 1022, (1022, 2)),
        ((1, 5000, 1), 3, 1, (1, 2)),
    ],
)
def test_truncation(lengths, max_length, floor, kept):
    prompt, answer = kept_lengths(*lengths, max_length, floor)
    assert (prompt, answer) == kept
    assert prompt + min(answer, max(lengths[1:])) <= max_length
    assert prompt >= 1
    assert answer >= 1


def test_truncation_never_empties_or_overflows():
    for prompt in (1, 7, 40, 400):
        for chosen in (1, 7, 40, 400):
            for rejected in (1, 7, 40, 400):
                for max_length, floor in ((3, 1), (10, 8), (64, 16), (2000, 10)):
                    p, a = kept_lengths(prompt, chosen, rejected, max_length, floor)
                    assert 1 <= p <= prompt
                    assert 1 <= a <= max(chosen, rejected)
                    assert p + a <= max_length


def test_a_cut_pair_keeps_the_end_of_its_prompt_and_the_start_of_its_answers(tokenizer):
    encode = Tokenizing(tokenizer, max_length=12, min_prompt_length=4)
    (pair,), unusable = encode([PreferencePair(0, "abcdefgh", "ABCDEFGHIJKL", "xyz")])
    assert not unusable
    assert tokenizer.decode(pair.prompt_ids) == "efgh"
    assert tokenizer.decode(pair.chosen_ids) == "ABCDEFGH"  # cut: no EOS, for it does not end here
    assert pair.rejected_ids.tolist() == [*ids(tokenizer, "xyz"), tokenizer.eos_token_id]
    assert encode.truncated == 1


def test_eos_ends_each_answer_once(tokenizer):
    encode = Tokenizing(tokenizer, 100, 10)
    (plain, ended), _ = encode([PreferencePair(0, "p", "yes", "no"), PreferencePair(1, "p", "yes<eos>", "no")])
    assert plain.chosen_ids.tolist() == ended.chosen_ids.tolist() == [*ids(tokenizer, "yes"), tokenizer.eos_token_id]


def test_pad_token_equal_to_eos_changes_nothing(tokenizer):
    other = bytes_tokenizer()
    other.pad_token = other.eos_token
    rows = [PreferencePair(0, "p", "yes", "no"), PreferencePair(1, TURNS, "yes", "no")]
    for ours, theirs in zip(Tokenizing(tokenizer, 100, 10)(rows)[0], Tokenizing(other, 100, 10)(rows)[0], strict=True):
        assert ours.chosen_ids.tolist() == theirs.chosen_ids.tolist()
        assert ours.chosen_ids[-1] == other.eos_token_id


def test_a_conversation_without_a_template_names_the_speakers(tokenizer):
    turns = (Message(role="system", content="Be brief."), *TURNS)
    (pair,), _ = Tokenizing(tokenizer, 100, 10)([PreferencePair(0, turns, "Hello!", "What?")])
    assert tokenizer.decode(pair.prompt_ids) == "System: Be brief.\n\nUser: Hi\n\nAssistant: "
    assert tokenizer.decode(pair.chosen_ids) == "Hello!<eos>"


def test_a_template_of_the_tokenizers_own_is_used_and_its_tail_dropped(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (pair,), _ = Tokenizing(tokenizer, 100, 10)([PreferencePair(0, TURNS, "Hello!", "What?")])
    assert tokenizer.decode(pair.prompt_ids) == "[user]Hi<eos>\n[assistant]"
    assert tokenizer.decode(pair.chosen_ids) == "Hello!<eos>"


def test_a_template_that_rewrites_the_prompt_makes_the_row_unusable(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    pairs, unusable = Tokenizing(tokenizer, 100, 10)([PreferencePair(7, TURNS, "Hello!", "What?")])
    assert not pairs
    assert unusable == [(7, "the chat template does not continue the prompt")]


def test_a_conversation_that_the_template_refuses_makes_the_row_unusable(tokenizer):
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    system = (Message(role="system", content="Be brief."), *TURNS)
    rows = [PreferencePair(4, system, "Hello!", "What?"), PreferencePair(5, TURNS, "Hello!", "What?")]
    pairs, unusable = Tokenizing(tokenizer, 100, 10)(rows)
    assert [pair.row for pair in pairs] == [5]
    assert unusable == [(4, "the chat template refuses the conversation: System role not supported")]


def test_bos_stays_at_the_front_of_a_cut_prompt(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    (pair,), _ = Tokenizing(tokenizer, 12, 4)([PreferencePair(0, "abcdefgh", "ABCDEFGHIJKL", "xyz")])
    assert tokenizer.decode(pair.prompt_ids) == "<bos>fgh"


def test_answers_that_differ_only_behind_the_cut_are_unusable(tokenizer):
    pairs, unusable = Tokenizing(tokenizer, 6, 2)([PreferencePair(3, "abcd", "sameA", "sameB")])
    assert not pairs
    assert unusable[0][0] == 3


def test_unusable_rows_are_counted_with_their_reason_and_none_left_is_an_error(tokenizer):
    same = PreferencePair(1, "abcd", "sameA", "sameB")
    held_out = [PreferencePair(9, "p", "a", "b"), dataclasses.replace(same, row=4)]
    train = [PreferencePair(0, "p", "yes", "no"), same]
    reason = "chosen and rejected are the same as tokens, or as far as max_length reaches"
    short = DataConfig(max_length=6, min_prompt_length=2)
    done = prepare(SourceData(train, 2, held_out, {"no prompt": [5]}), tokenizer, short)
    assert done.size == 1
    assert done.skipped == {"no prompt": [5], reason: [1], f"in the evaluation data: {reason}": [4]}
    endless = prepare(SourceData(train, None, held_out), tokenizer, short)
    assert endless.skipped == {f"in the evaluation data: {reason}": [4]}
    with pytest.raises(Refused, match="no training pair"):
        prepare(SourceData([same], 1, held_out), tokenizer, short)
    with pytest.raises(Refused, match="no held-out pair"):
        prepare(SourceData(train, 2, [same]), tokenizer, short)


def mismatched(pairs, train):
    """The mismatched answers that the pairs get beside these training pairs, in 4 tokens."""
    data = TokenizedData(lambda positions: [train[p] for p in positions], len(train), [], [], {}, 0, max_length=4)
    return [[ids.tolist() for ids in pair.mismatched] for pair in data.with_mismatched(pairs)]


def test_each_pair_gets_the_next_ones_answers_cut_to_fit():
    three = [pair(0, [1, 1], [10, 11], [12]), pair(1, [1], [20], [21, 22]), pair(2, [1, 1, 1], [30], [31])]
    for train in (three, [pair(9, [1], [90], [91])]):
        assert mismatched(three, train) == [[[20], [21, 22]], [[30], [31]], [[10], [12]]]
    assert mismatched([], three) == []


def test_a_single_pair_gets_a_further_ones_answers_never_its_own():
    single, further = pair(0, [1, 1], [10, 11], [12]), pair(9, [1], [90, 91, 92], [93])
    for train in ([further], [single, further], [further, single]):
        assert mismatched([single], train) == [[[90, 91], [93]]]
    with pytest.raises(Refused, match="another pair"):
        mismatched([single], [single])


def test_a_pair_longer_than_the_models_positions_is_refused_by_its_row():
    """And only such a pair: max_length alone harms no one. Mismatched answers are cut to fit as well."""
    long = random_pairs(1, 50, seed=3)[0]
    longest = len(long.prompt_ids) + max(len(long.chosen_ids), len(long.rejected_ids))
    for size in (2, None):
        data = TokenizedData(lambda wanted: [long for _ in wanted], size, [long], [], {}, 0, max_length=100)
        assert data.within(None) is data
        assert data.within(100) is data
        assert data.within(longest).max_length == longest
        assert data.within(longest).train(range(2)) == [long, long]
        with pytest.raises(ConfigError, match=rf"at most {longest - 1}, .* row {long.row} has {longest} tokens"):
            data.within(longest - 1)
    endless = TokenizedData(lambda wanted: [long], None, [pair(0, [1], [2], [3])], [], {}, 0, max_length=100)
    with pytest.raises(ConfigError, match="positions"):
        endless.within(longest - 1).train(range(1))


def test_a_tokenizer_written_in_python_tokenizes_apart_alone():
    """It does not say where in a text its tokens are."""
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    pairs, unusable = Tokenizing(slow, 100, 10)(
        [PreferencePair(0, "Hi", "yes", "no"), PreferencePair(1, "é", "a", "a")]
    )
    assert [pair.row for pair in pairs] == [0]
    assert pairs[0].prompt_ids.tolist() == [3 + byte for byte in b"Hi"]
    assert pairs[0].chosen_ids.tolist() == [*(3 + byte for byte in b"yes"), slow.eos_token_id]
    assert [row for row, _ in unusable] == [1]
    held_out = [PreferencePair(9, "p", "a", "b")]
    source = SourceData(held_out, 1, held_out)
    assert prepare(source, slow, DataConfig()).size == 1
    with pytest.raises(ConfigError, match=r"data\.whole_text"):
        prepare(source, slow, DataConfig(whole_text=True))
