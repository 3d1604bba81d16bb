"""What is said of the bytes that ranks hold, for people."""

import json

import pytest

from orpo_exp.plugins.memory import Footprint, told


class Others:
    """The ranks of a run, what the others say given."""

    def __init__(self, *said: tuple[int, int, int, int | None]) -> None:
        names = ("weights", "copies", "gradients", "state")
        self.said = [json.dumps(dict(zip(names, of, strict=True))) for of in said]

    def exchange(self, text: str) -> list[str]:
        return [text, *self.said]


def test_ranks_that_hold_the_same_are_told_of_once_and_others_by_the_smallest_and_the_largest():
    ranks = Others((14_000_000_000, 0, 250_000, 12), (15_000_000_000, 0, 250_000, 12))
    line = told(ranks, Footprint(weights=14_500_000_000, copies=0, gradients=250_000, state=12))
    assert line == "weights 14 GB to 15 GB, float32 copies 0 B, gradients 250 kB, optimizer state 12 B"


def test_what_an_optimizer_does_not_say_is_not_made_up():
    line = told(Others((4, 0, 4, 8)), Footprint(weights=4, copies=0, gradients=4, state=None))
    assert line == "weights 4 B, float32 copies 0 B, gradients 4 B, optimizer state not known yet"


@pytest.mark.parametrize(
    ("size", "shown"),
    [(999, "999 B"), (999_499, "999 kB"), (999_600, "1 MB"), (28_123_456_789, "28.1 GB"), (1.5e12, "1.5 TB")],
)
def test_a_size_has_three_digits(size, shown):
    line = told(Others(), Footprint(int(size), 0, 0, 0))
    assert line.startswith(f"weights {shown},")
