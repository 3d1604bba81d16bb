"""Prompt and answers as tokens of whole texts, for tokenizers of the kinds that models have."""

import logging
import random

import pytest
from data.kinds import KINDS, Tokenizing, made

from orpo_exp.data.base import DataConfig, SourceData
from orpo_exp.data.tokenize import prepare
from orpo_exp.schema import ConfigError
from orpo_exp.types import Message, PreferencePair

PIECES = (
    "the",
    " the",
    "answer",
    " is",
    "two",
    " four",
    "User:",
    " Hi",
    "!",
    "?",
    "\n",
    "  ",
    "é",
    "日本",
    "🙂",
    "1",
    "x",
)


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return made(request.param)


def random_pairs(count: int, most: int, seed: int = 0) -> list[PreferencePair]:
    rng = random.Random(seed)

    def text() -> str:
        return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, most)))

    return [PreferencePair(row, text(), text(), text()) for row in range(count)]


def chained(pair):
    return [[*pair.prompt_ids.tolist(), *answer.tolist()] for answer in (pair.chosen_ids, pair.rejected_ids)]


def test_prompt_and_answer_have_the_tokens_of_the_whole_text(tokenizer):
    pairs = random_pairs(300, 8)
    encode = Tokenizing(tokenizer, 1000, 10, whole=True)
    for pair in encode(pairs)[0]:
        given = pairs[pair.row]
        for ids, answer in zip(chained(pair), (given.chosen, given.rejected), strict=True):
            assert ids == [*tokenizer(given.prompt + answer).input_ids, tokenizer.eos_token_id]
    assert 0 < encode.moved < 300


def test_apart_they_differ_for_every_kind(tokenizer):
    pairs = random_pairs(300, 8)
    whole, apart = (Tokenizing(tokenizer, 1000, 10, whole=way)(pairs)[0] for way in (True, False))
    by_row = {pair.row: chained(pair) for pair in apart}
    assert any(chained(pair) != by_row[pair.row] for pair in whole if pair.row in by_row)


def test_where_a_token_reaches_over_the_end_of_the_prompt_it_goes_with_the_answers():
    tokenizer = made("GPT-2")
    assert len(tokenizer("answer").input_ids) < len(tokenizer("ans").input_ids) + len(tokenizer("wer").input_ids)
    encode = Tokenizing(tokenizer, 100, 10, whole=True)
    (pair,), _ = encode([PreferencePair(0, "the ans", "wer", "x")])
    assert encode.moved == 1
    assert tokenizer.decode(pair.prompt_ids) == "the"
    assert tokenizer.decode(pair.chosen_ids) == " answer<eos>"
    assert tokenizer.decode(pair.rejected_ids) == " ansx<eos>"
    (pair,), _ = (clean := Tokenizing(tokenizer, 100, 10, whole=True))([PreferencePair(0, "the", " answer", " x")])
    assert clean.moved == 0
    assert tokenizer.decode(pair.prompt_ids) == "the"


@pytest.mark.parametrize("whole", [True, False])
def test_truncation_holds_for_every_kind(tokenizer, whole):
    rng, pairs = random.Random(1), random_pairs(1000, 40)
    whole_ones = {pair.row: pair for pair in Tokenizing(tokenizer, 10_000, 1, whole)(pairs)[0]}
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    for first in range(0, 1000, 20):
        some = pairs[first : first + 20]
        floor = rng.randint(2, 20)  # with a single one, the prompt's last token stays, not BOS
        most = rng.randint(floor + 2, 60)
        usable, unusable = Tokenizing(tokenizer, most, floor, whole)(some)
        assert all("as far as max_length reaches" in reason for _, reason in unusable)
        assert len(usable) + len(unusable) == 20
        for cut in usable:
            full = whole_ones[cut.row]
            assert len(cut.prompt_ids) > 0
            assert cut.prompt_ids.tolist()[: len(bos)] == bos
            kept = cut.prompt_ids.tolist()[len(bos) :]
            assert full.prompt_ids.tolist()[len(full.prompt_ids) - len(kept) :] == kept
            for ours, theirs in ((cut.chosen_ids, full.chosen_ids), (cut.rejected_ids, full.rejected_ids)):
                assert 0 < len(ours) <= len(theirs)
                assert len(cut.prompt_ids) + len(ours) <= most
                assert ours.tolist() == theirs.tolist()[: len(ours)]
                assert (ours[-1] == tokenizer.eos_token_id) == (len(ours) == len(theirs))


def source(pairs) -> SourceData:
    return SourceData(pairs, len(pairs), pairs)


def test_the_log_says_what_it_concerns(caplog):
    pairs = random_pairs(100, 8)
    with caplog.at_level(logging.INFO):
        prepare(source(pairs), made("Llama-2"), DataConfig())
        prepare(source(pairs), made("Llama-2"), DataConfig(whole_text=True))
    assert "held-out pairs have other tokens as whole texts: data.whole_text" in caplog.text
    assert "pairs are parted before the end of their prompt" in caplog.text


def test_a_chat_template_from_a_file_or_the_plain_one(tmp_path):
    turns = (Message(role="user", content="Hi"),)
    pairs = [PreferencePair(0, turns, "Hello!", "What?"), PreferencePair(1, turns, "Yes", "No")]
    tokenizer = made("GPT-2")
    tokenizer.chat_template = "{% for m in messages %}own {{ m['content'] }} {% endfor %}"
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )

    def prompt(template):
        done = prepare(source(pairs), tokenizer, DataConfig(chat_template=template))
        return tokenizer.decode(done.train([0])[0].prompt_ids)

    assert prompt(None) == "own Hi "
    assert prompt("plain") == "User: Hi\n\nAssistant: "
    assert prompt(str(tmp_path / "mine.jinja")) == "<user> Hi <assistant> "
    with pytest.raises(ConfigError, match="chat_template"):
        DataConfig(chat_template="nowhere.jinja")
