"""A run's held-out pairs as intervals need them: by prompt, and a value of each whose mean is the run's metric."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_exp.pair_tables import read_pairs
from orpo_exp.sweeps.intervals import PairPart, variance_of_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIXING = 0x9E3779B97F4A7C15  # an odd number: a row's place in a pair's key
PARTS = (("chosen",), ("prompt", "chosen"))  # what a mean over tokens can be over
NEAR = 1e-6  # relative: two ways to add the same numbers up


@dataclass(frozen=True)
class HeldOut:
    """A run's final evaluation, in the order of the prompts.

    rows: (n,) of the data. keys: (n,) uint64, what a pair is known by in other runs: its row and its prompt. prompts:
    (n,) uint64, the same where these are. columns: by name (n,) numbers, see PairFiles.
    """

    rows: "NDArray[Any]"
    keys: "NDArray[Any]"
    prompts: "NDArray[Any]"
    columns: "dict[str, NDArray[Any]]"

    @staticmethod
    def read(path: Path, step: int) -> "HeldOut | None":
        """That of a run's pairs.parquet; None where there is none of its last step, or a single prompt."""
        import numpy

        table = read_pairs(path)
        if table is None or table.step != step or len(set(table.prompts)) < 2:
            return None
        prompts = numpy.array([int(of, 16) for of in table.prompts], dtype=numpy.uint64)
        keys = prompts ^ (table.rows.astype(numpy.uint64) * numpy.uint64(MIXING))
        order = prompts.argsort(kind="stable")
        return HeldOut(
            table.rows[order], keys[order], prompts[order], {name: of[order] for name, of in table.columns.items()}
        )

    def values(self, metric: str, reported: float) -> "Values | None":
        """Of each pair; None for what is not the mean of pairs' values, nor of their tokens'."""
        import numpy

        if metric in self.columns and math.isclose(self.columns[metric].mean(), reported, rel_tol=NEAR, abs_tol=1e-12):
            return Values(self.keys, self.prompts, self.columns[metric])
        for parts in PARTS:
            if all(f"{part}_tokens" in self.columns for part in parts):
                tokens = numpy.sum([self.columns[f"{part}_tokens"] for part in parts], axis=0)
                losses = -numpy.sum([self.columns[f"{part}_logp"] for part in parts], axis=0)
                if math.isclose(losses.sum() / tokens.sum(), reported, rel_tol=NEAR):
                    # what a pair does to the ratio, to first order
                    values = reported + (losses - reported * tokens) / tokens.mean()
                    return Values(self.keys, self.prompts, values)
        return None


@dataclass(frozen=True)
class Values:
    """keys, prompts: see HeldOut. values: (n,) float64."""

    keys: "NDArray[Any]"
    prompts: "NDArray[Any]"
    values: "NDArray[Any]"

    def less(self, other: "Values") -> "Values | None":
        """The differences from another run's, over the pairs that both have; None where these are less than half."""
        import numpy

        if numpy.array_equal(self.keys, other.keys):
            return Values(self.keys, self.prompts, self.values - other.values)
        common, here, there = numpy.intersect1d(self.keys, other.keys, return_indices=True)
        if 2 * len(common) < max(len(self.keys), len(other.keys)):
            return None
        order = here.argsort()
        return Values(
            self.keys[here[order]], self.prompts[here[order]], self.values[here[order]] - other.values[there[order]]
        )


def pair_part(runs: Sequence[Values], added: tuple[float, ...] = ()) -> PairPart:
    """What the held-out pairs do to the mean over these runs. added: see variance_of_mean."""
    import numpy

    each = [variance_of_mean(run.values, starts_of(run.prompts), added) for run in runs]
    within = numpy.mean(each)
    if len(runs) == 1:
        return PairPart(within, within, 0.0, len(starts_of(runs[0].prompts)))
    parts = ("keys", "prompts", "values")
    keys, prompts, values = (numpy.concatenate([getattr(run, part) for run in runs]) for part in parts)
    _, first, place, count = numpy.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    size = len(keys) / len(runs)
    means = numpy.bincount(place, values) / count
    order = prompts[first].argsort(kind="stable")
    starts = starts_of(prompts[first][order])
    between = variance_of_mean(means[order], starts, added) * len(first) / size
    shared = float((count * (count - 1)).sum() / (len(runs) * (len(runs) - 1) * size))
    return PairPart(within, between, shared, len(starts))


def apart(first: PairPart, second: PairPart, seeds: tuple[int, int]) -> PairPart:
    """What they do to a difference of two means over runs that have no pairs in common; seeds: how many runs each."""
    within = first.within / seeds[0] + second.within / seeds[1]
    between = first.shared * first.between + second.shared * second.between
    shared = min(1.0, max(first.shared, second.shared))
    return PairPart(within, between / shared if shared else between, shared, min(first.clusters, second.clusters))


def starts_of(prompts: "NDArray[Any]") -> "NDArray[Any]":
    """Where each begins, of prompts that lie side by side where they are the same."""
    import numpy

    return numpy.flatnonzero(numpy.r_[True, prompts[1:] != prompts[:-1]])
