"""How the pairs of one global step are shared among replicas and micro-batches."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Protocol, TypeVar

from orpo_exp.layouts import Layout
from orpo_exp.types import Batch, Counts, Need, PairLogps, TokenizedPair, TokenLogps

Logps = TypeVar("Logps", PairLogps, TokenLogps)


class Replicas(Protocol):
    """Of the ranks, what decides who has which pairs: see `Ranks`."""

    @property
    def replica(self) -> int:
        """This one, counted from 0."""

    @property
    def replicas(self) -> int:
        """How many there are."""


@dataclass(frozen=True)
class Sharing:
    """How a run's work is split, for every set of pairs that is to be scored.

    needs: what is computed of each pair beyond its answers. most_pairs, most_tokens: in a micro-batch; of one at most,
    or where that is None, about so many of the other.
    """

    layout: Layout
    ranks: Replicas
    needs: frozenset[Need]
    most_pairs: int | None
    most_tokens: int

    def of(self, pairs: Sequence[TokenizedPair]) -> "Share":
        """This replica's share of the pairs, in micro-batches of which some may be empty.

        Every replica gets equally many. Pairs of like cost share a micro-batch, and the replicas' micro-batches of one
        round are neighbours in cost: little padding, and no replica waits long for another.
        """
        ordered = sorted(pairs, key=lambda pair: -self.layout.cost(pair))
        replicas, replica = self.ranks.replicas, self.ranks.replica
        # how much of the work lies before each pair, and how much a micro-batch may have of it
        weights, most = [1] * len(ordered), self.most_pairs
        if most is None:
            weights, most = [self.layout.cost(pair) for pair in ordered], self.most_tokens
        before = list(accumulate(weights, initial=0))
        fullest = -(-len(ordered) // replicas)  # rounds in which a pair is all that a micro-batch has
        rounds = max(1, min(fullest, -(-before[-1] // (most * replicas))))
        groups = rounds * replicas
        bounds = [bisect_right(before, before[-1] * i // groups) - 1 for i in range(groups + 1)]
        own = [round_ * replicas + replica for round_ in range(rounds)]
        return Share(self, [ordered[bounds[g] : bounds[g + 1]] for g in own], Counts.of(pairs))


@dataclass(frozen=True)
class Share:
    """One replica's share of some pairs. parts: its micro-batches as pairs. counts: of all replicas' pairs."""

    sharing: Sharing
    parts: list[list[TokenizedPair]]
    counts: Counts

    @cached_property
    def pairs(self) -> list[TokenizedPair]:
        """The replica's pairs in the order in which they are scored."""
        return [pair for part in self.parts for pair in part]

    @cached_property
    def batches(self) -> list[Batch]:
        """The micro-batches as the model's inputs, with all that is needed."""
        return self._collated(self.sharing.needs)

    def batches_for(self, needs: frozenset[Need]) -> list[Batch]:
        """The micro-batches, with this alone of what is needed."""
        return self.batches if needs == self.sharing.needs else self._collated(needs)

    def part(self, number: int, logps: Logps) -> Logps:
        """Of the log-probabilities (or their gradients) of all the replica's pairs those of one micro-batch."""
        first = sum(len(part) for part in self.parts[:number])
        return logps.slice(first, first + len(self.parts[number]))

    def _collated(self, needs: frozenset[Need]) -> list[Batch]:
        return [self.sharing.layout.collate(part, needs) for part in self.parts]
