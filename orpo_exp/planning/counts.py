"""What a run computes, counted from its data's lengths and the order of its steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orpo_exp.layouts import Layout
from orpo_exp.layouts.padded import Padded
from orpo_exp.preparing import Read
from orpo_exp.training.sharing import Share, Sharing
from orpo_exp.types import TokenizedPair

MOST_STEPS = 20_000  # that are looked at: some ten million pairs, and a minute


@dataclass(frozen=True)
class Seat:
    """A replica among others that are not there. Of them all the first has the longest pairs; see Sharing."""

    replica: int
    replicas: int


@dataclass(frozen=True)
class Counted:
    """What the steps of a run come to, for this replica.

    costs: positions computed in each step that was looked at, from the first on. tokens: of all these, each prompt
    once. rounds: micro-batches in the step with the most of them. largest: the pairs of the micro-batch with the most
    positions. padding: the share of positions that hold no token. spared: how much less is computed than with each
    answer in a row of its own.
    """

    tokens: int
    costs: list[int]
    rounds: int
    largest: list[TokenizedPair]
    padding: float
    spared: float

    @property
    def cost(self) -> float:
        """Positions computed in a step, on average."""
        return sum(self.costs) / len(self.costs)

    @property
    def largest_step(self) -> int:
        """The step, counted from 1, in which the most is computed."""
        return self.costs.index(max(self.costs)) + 1

    def typical(self, count: int) -> list[int]:
        """The steps, counted from 1, that cost most nearly what steps cost on average."""
        steps = sorted(range(1, len(self.costs) + 1), key=lambda step: abs(self.costs[step - 1] - self.cost))
        return steps[:count]


def count(read: Read, sharing: Sharing) -> Counted:
    """Look at every step of the run, or at the first MOST_STEPS of them."""
    layout, plain = sharing.layout, Padded(Padded.Config())
    costs: list[int] = []
    once = rounds = filled = padded = 0
    largest: list[TokenizedPair] = []
    for share in shares(read, sharing):
        parts = [part for part in share.parts if part]
        costs.append(sum(layout.computed(part) for part in parts))
        once += sum(pair.length for part in parts for pair in part)
        rounds = max(rounds, len(share.parts))
        filled += sum(tokens(layout, pair) for part in parts for pair in part)
        padded += sum(plain.computed(part) for part in parts)
        largest = max([largest, *parts], key=lambda part: layout.computed(part) if part else 0)
    computed = max(1, sum(costs))
    return Counted(once, costs, rounds, largest, 1 - filled / computed, 1 - computed / max(1, padded))


def shares(read: Read, sharing: Sharing) -> Iterator[Share]:
    """This replica's share of each step."""
    for step in range(1, min(read.max_steps, MOST_STEPS) + 1):
        pairs = read.pairs.train(read.steps.positions(step))
        yield sharing.of(read.pairs.completed(pairs, sharing.needs))


def evaluated(read: Read, sharing: Sharing) -> Share:
    """This replica's share of an evaluation."""
    return sharing.of(read.pairs.completed(read.pairs.held_out, sharing.needs))


def computed(layout: Layout, parts: Sequence[Sequence[TokenizedPair]]) -> int:
    """Positions of some micro-batches."""
    return sum(layout.computed(part) for part in parts if part)


def tokens(layout: Layout, pair: TokenizedPair) -> int:
    """The positions of a pair that hold a token of it. Where a row holds one text, its prompt stands there twice."""
    if layout.several_texts:
        return layout.computed([pair])
    return pair.length + len(pair.prompt_ids) - 2
