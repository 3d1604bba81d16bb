"""The forms of rows, each by hand, and what is recognised as which."""

from dataclasses import replace

import pytest
from hydra.errors import ConfigCompositionException

from orpo_exp.composition import check, compose
from orpo_exp.data.forms import AUTO, NoForm, pairs_of
from orpo_exp.types import PreferencePair

HI, HELLO, WHAT = (
    {"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello!"), ("assistant", "What?"))
)
BE_KIND = {"role": "system", "content": "Be kind."}


def found_of(rows, form, columns, seed):
    """The form, and all that was found once every pair has been read."""
    name, found = pairs_of(rows, form, columns, seed)
    pairs = list(found.pairs)
    return name, replace(found, pairs=pairs)


def transcript(*said: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(said))


@pytest.mark.parametrize(
    ("form", "row", "prompt"),
    [
        ("trl", {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}, "Hi"),
        ("trl", {"prompt": [HI], "chosen": [HELLO], "rejected": [WHAT]}, (HI,)),
        ("trl", {"prompt": [BE_KIND, HI], "chosen": [HELLO], "rejected": [WHAT]}, (BE_KIND, HI)),
        ("trl_implicit", {"chosen": [BE_KIND, HI, HELLO], "rejected": [BE_KIND, HI, WHAT]}, (BE_KIND, HI)),
        ("trl_implicit", {"chosen": "Hi. Hello!", "rejected": "Hi. What?"}, "Hi."),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}], "chosen": HELLO, "rejected": WHAT}, (HI,)),
        ("colossalchat", {"context": [HI], "chosen": [HELLO], "rejected": [WHAT]}, (HI,)),
        ("hh", {"chosen": transcript("Hi", "Hello!"), "rejected": transcript("Hi", "What?")}, (HI,)),
        (
            "hh",
            {
                "chosen": transcript("Hi", "Hello!", "Hi", "Hello!"),
                "rejected": transcript("Hi", "Hello!", "Hi", "What?"),
            },
            (HI, HELLO, HI),
        ),
        (
            "ultrafeedback",
            {
                "instruction": "Hi",
                "completions": [
                    {"response": "What?", "overall_score": "3.5"},
                    {"response": "Hello!", "overall_score": 9.0},
                ],
            },
            "Hi",
        ),
    ],
)
def test_each_form_is_recognised_and_read(form, row, prompt):
    name, found = found_of([row], AUTO, {}, seed=0)
    assert name == form
    (pair,) = found.pairs
    assert pair.prompt == prompt
    assert (pair.chosen.strip(), pair.rejected.strip()) == ("Hello!", "What?")
    assert found_of([row], form, {}, seed=0) == (name, found)


def test_other_names_of_columns_are_told_and_a_system_message_goes_before_the_prompt():
    row = {"question": "Hi", "better": "Hello!", "worse": "What?", "system": "Be kind."}
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    plain = PreferencePair(0, "Hi", "Hello!", "What?")
    assert found_of([row], AUTO, names, seed=0)[1].pairs == [plain]
    asked = found_of([row], AUTO, names | {"system": "system"}, seed=0)[1].pairs
    assert asked == [PreferencePair(0, (BE_KIND, HI), "Hello!", "What?")]
    with pytest.raises(NoForm, match="better, question, worse"):
        found_of([{k: v for k, v in row.items() if k != "system"}], AUTO, {}, seed=0)
    with pytest.raises(NoForm, match="columns better, question, system, worse, and no bad, good"):
        found_of([row], AUTO, {"prompt": "question", "chosen": "good", "rejected": "bad"}, seed=0)


def test_the_best_answer_is_set_against_one_that_the_seed_chooses_and_ties_are_left_out():
    def row(*scores):
        answers = [{"response": f"answer {i}", "overall_score": score} for i, score in enumerate(scores)]
        return {"instruction": "Hi", "completions": answers}

    rows = [row(1, 2, 5, 3)] * 40 + [row(5, 5, 1), row(2, 2), row(None, 4)]
    found = found_of(rows, AUTO, {}, seed=0)[1]
    assert {pair.chosen for pair in found.pairs} == {"answer 2"}
    assert {pair.rejected for pair in found.pairs} == {"answer 0", "answer 1", "answer 3"}
    assert found.skipped == {
        "several answers have the best score": [40],
        "no answer is better than another": [41, 42],
    }
    assert found_of(rows, AUTO, {}, seed=0)[1] == found
    assert found_of(rows, AUTO, {}, seed=1)[1].pairs != found.pairs


def test_unpaired_answers_are_paired_by_prompt_where_both_labels_are_there():
    rows = [
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": "Bye", "completion": "So long!", "label": True},
        {"prompt": "Hi", "completion": "What?", "label": False},
        {"prompt": "Hi", "completion": "Go away.", "label": False},
        {"prompt": "Hi", "completion": "Hm", "label": "good"},
        {"prompt": [HI], "completion": [HELLO], "label": True},
        {"prompt": [HI], "completion": [WHAT], "label": False},
    ]
    name, found = found_of(rows, AUTO, {}, seed=0)
    assert name == "kto"
    assert found.pairs == [PreferencePair(0, "Hi", "Hello!", "What?"), PreferencePair(5, (HI,), "Hello!", "What?")]
    assert found.skipped == {
        "label is neither true nor false": [4],
        "no other answer to the prompt has the other label": [3, 1],
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": transcript("Hi", "Hello!"), "rejected": "Hi"}, "rejected does not begin with a speaker"),
        (
            {"chosen": transcript("Hi", "Hello!"), "rejected": transcript("Ho", "What?")},
            "an answer is not one assistant turn",
        ),
        (
            {"prompt": [{"role": "tool", "content": "4"}], "chosen": "a", "rejected": "b"},
            "unknown role 'tool' in prompt",
        ),
        ({"instruction": "Hi", "completions": "What?"}, "completions is no list"),
        (
            {"instruction": "Hi", "completions": [{"response": "Hello!"}]},
            "no completion with a score (overall_score, fine-grained_score, score, rating) "
            "and a text (response, content, text)",
        ),
    ],
)
def test_rows_that_make_no_pair_say_why(row, reason):
    whole = {
        "chosen": {"chosen": transcript("Hi", "Hello!"), "rejected": transcript("Hi", "What?")},
        "prompt": {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        "instruction": {
            "instruction": "Hi",
            "completions": [{"response": r, "score": s} for r, s in (("a", 1), ("b", 2))],
        },
    }[next(iter(row))]
    assert found_of([whole, row], AUTO, {}, seed=0)[1].skipped == {reason: [1]}


def test_text_that_is_none_is_broken_not_skipped():
    row = {"prompt": "Hi", "chosen": "Hello \ud83d", "rejected": "What?"}
    found = found_of([row], AUTO, {}, seed=0)[1]
    assert not found.pairs
    assert not found.skipped
    assert list(found.broken.values()) == [[0]]


def test_columns_are_named_on_the_command_line_and_a_name_that_no_form_has_is_refused():
    given = ["+experiment=orpo", "model=tiny", "data.path=x.jsonl"]
    order = check(compose([*given, "data.columns={prompt: question}", "data.columns.chosen=better"], None), given)
    assert (order.config.data.columns.prompt, order.config.data.columns.chosen) == ("question", "better")
    plain = check(compose(given, None), given)
    assert order.config.config_hash != plain.config.config_hash
    with pytest.raises(ConfigCompositionException, match=r"data\.columns\.promt"):
        compose([*given, "data.columns.promt=question"], None)


def test_a_row_that_lacks_its_prompt_has_none_however_alike_its_answers_begin():
    rows = [
        {"prompt": "Hi", "chosen": "Well, hello!", "rejected": "Well, what?"},
        {"prompt": None, "chosen": "Well, hello!", "rejected": "Well, what?"},
    ]
    found = found_of(rows, AUTO, {}, seed=0)[1]
    assert [pair.row for pair in found.pairs] == [0]
    assert found.skipped == {"no prompt": [1]}
