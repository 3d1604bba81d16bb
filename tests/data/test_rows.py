import random
from typing import Any

import pytest

from orpo_exp.data.rows import PROMPT_COLUMNS, UnusableRow, parse_row
from orpo_exp.types import PreferencePair

HI, HELLO, WHAT = (
    {"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello!"), ("assistant", "What?"))
)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}, "Hi"),
        ({"prompt": [HI], "chosen": [HELLO], "rejected": [WHAT]}, (HI,)),
        ({"prompt": "Hi", "chosen": [HI, HELLO], "rejected": [HI, WHAT]}, (HI,)),
        ({"prompt": "Hi", "chosen": [HELLO], "rejected": [WHAT]}, (HI,)),
        ({"chosen": [HI, HELLO], "rejected": [HI, WHAT]}, (HI,)),
        ({"prompt": [HI], "chosen": "Hello!", "rejected": "What?"}, (HI,)),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Hello!"},
                "rejected": {"from": "gpt", "value": "What?"},
            },
            (HI,),
        ),
        (
            {
                "context": [{"from": "human", "content": "Hi"}],
                "chosen": [{"from": "assistant", "content": "Hello!"}],
                "rejected": [{"from": "assistant", "content": "What?"}],
            },
            (HI,),
        ),
    ],
)
def test_every_form_of_a_row(row, prompt):
    assert parse_row(3, row) == PreferencePair(3, prompt, "Hello!", "What?")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "no chosen"),
        ({"prompt": "p", "chosen": " ", "rejected": "b"}, "empty chosen"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "empty rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "p", "chosen": 3, "rejected": "a"}, "chosen is neither text nor a list of turns"),
        (
            {"prompt": [{"role": "judge", "content": "x"}], "chosen": "a", "rejected": "b"},
            "unknown role 'judge' in prompt",
        ),
        ({"prompt": [HI], "chosen": [HELLO, HI], "rejected": [WHAT]}, "an answer is not one assistant turn"),
        ({"prompt": [HI], "chosen": "a", "rejected": [WHAT]}, "one answer is text, the other a list of turns"),
    ],
)
def test_unusable_rows_say_why(row, reason):
    with pytest.raises(UnusableRow) as told:
        parse_row(0, row)
    assert str(told.value) == reason


NAMES = ("role", "from", "content", "value", "weight")
TEXTS = ("", " ", "Hi", "user", "assistant", "human", "judge", "ever so long " * 100)


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A JSON-like value of any type, nested."""
    kind = rng.randrange(8 if depth < 4 else 5)
    if kind < 5:
        return (None, rng.random() < 0.5, rng.choice((0, 7, -1)), rng.random(), rng.choice(TEXTS))[kind]
    if kind == 5:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(NAMES): anything(rng, depth + 1) for _ in range(rng.randrange(4))}


def turn(rng: random.Random) -> Any:
    return {rng.choice(("role", "from")): some(rng, rng.choice(TEXTS)), rng.choice(NAMES): some(rng, rng.choice(TEXTS))}


def some(rng: random.Random, usual: Any) -> Any:
    """What usually stands here; now and then anything."""
    return usual if rng.random() < 0.8 else anything(rng)


def test_no_row_whatever_it_holds_ends_the_run():
    rng = random.Random(0)
    outcomes: dict[str, int] = {}
    for number in range(20_000):
        row = {}
        for column in (*PROMPT_COLUMNS, "chosen", "rejected"):
            if rng.random() < 0.8:
                turns = [turn(rng) for _ in range(rng.randrange(4))]
                row[column] = some(rng, rng.choice([*TEXTS, turns, turns]))
        try:
            outcome = parse_row(number, row)
        except UnusableRow as reason:
            outcome = reason
        assert isinstance(outcome, PreferencePair | UnusableRow)
        told = str(outcome) if isinstance(outcome, UnusableRow) else "a pair"
        assert len(told) < 90
        outcomes[told] = outcomes.get(told, 0) + 1
    assert outcomes["a pair"] > 500
    assert outcomes["a turn in prompt has no role, or one that is not text"] > 100
    assert 20 < len(outcomes) < 80
