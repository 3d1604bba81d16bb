"""A sweep's points, and their groups over seeds: what the settings consist of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orpo_exp.metrics import Direction, Metric
from orpo_exp.pair_tables import KEPT, PAIRS, TEST_PAIRS
from orpo_exp.runs.states import State
from orpo_exp.sweeps.conditions import as_number, as_typed
from orpo_exp.sweeps.held_out import HeldOut
from orpo_exp.sweeps.intervals import Quantile
from orpo_exp.sweeps.statistics import Difference, Estimate, Sample, estimate, leads

SEED = "seed"
NOWHERE = "(none)"  # the value of a key that a point's configuration does not have


@dataclass
class Point:
    """One run. settings: every known key as text. reason: why it has no result to count, None where it has one.

    kept: the settings are what result.json says can change a number; else (before version 0.2) all of config.yaml.
    metrics, test: the final held-out metrics, and those of the test pairs, finite ones alone. declared: what the run
    says that its metrics are. seconds: its wall time. gpus, cores: what it kept busy.
    """

    folder: Path
    settings: dict[str, str]
    state: State
    reason: str | None
    kept: bool
    config_hash: str | None
    metrics: dict[str, float]
    test: dict[str, float]
    declared: Mapping[str, Metric]
    steps: int
    seconds: float
    gpus: int
    cores: int

    @property
    def seed(self) -> str:
        """The seed as text."""
        return self.settings.get(SEED, "")

    @cached_property
    def held_out(self) -> HeldOut | None:
        """Its last evaluation pair by pair, None where that was not written down (before version 0.2)."""
        latest = HeldOut.read(self.folder / PAIRS, self.steps)
        return latest or HeldOut.read(self.folder / KEPT.format(self.steps), self.steps)

    @cached_property
    def test_pairs(self) -> HeldOut | None:
        """The same of the test."""
        return HeldOut.read(self.folder / TEST_PAIRS, self.steps)


@dataclass
class Group:
    """The completed points of one setting, one for each seed. setting: swept key but the seed to value."""

    setting: dict[str, str]
    points: list[Point]

    @property
    def name(self) -> str:
        """The setting as one would type it."""
        return as_typed(self.setting) or "all seeds"

    def values(self, metric: str) -> dict[str, float]:
        """A metric by seed."""
        return {point.seed: point.metrics[metric] for point in self.points if metric in point.metrics}

    def sample(self, metric: str) -> Sample:
        """A metric of this setting, pair by pair where all its runs have that."""
        return self._sample(metric, self.values(metric))

    def _sample(self, metric: str, values: dict[str, float], test: bool = False) -> Sample:
        of = {p.seed: p.test_pairs if test else p.held_out for p in self.points if p.seed in values}
        found = {seed: held.values(metric, values[seed]) for seed, held in of.items() if held}
        pairs = {seed: by_pair for seed, by_pair in found.items() if by_pair}
        declared = next((p.declared[metric] for p in self.points if metric in p.declared), None)
        return Sample(values, pairs if len(pairs) == len(values) else {}, declared.bounds if declared else (None, None))

    def tested(self, metric: str) -> Estimate | None:
        """A metric's mean over the seeds with the pairs of the test, which had no part in any choice; None where not
        every run has been tested."""
        values = {point.seed: point.test[metric] for point in self.points if metric in point.test}
        return estimate(self._sample(metric, values, test=True)) if len(values) == len(self.points) else None

    def estimate(self, metric: str) -> Estimate | None:
        """A metric's mean over the seeds, None where no point has it."""
        sample = self.sample(metric)
        return estimate(sample) if sample.values else None


def grouped(points: Iterable[Point], keys: Sequence[str]) -> tuple[list[Group], list[Point]]:
    """The completed points by setting, in the order of the values; of several with one seed the first counts."""
    groups: dict[tuple[str, ...], Group] = {}
    repeated: list[Point] = []
    for point in points:
        if point.state is not State.completed:
            continue
        setting = {key: point.settings.get(key, NOWHERE) for key in keys}
        group = groups.setdefault(tuple(setting.values()), Group(setting, []))
        known = point.seed in {other.seed for other in group.points}
        (repeated if known else group.points).append(point)
    orders = [ordered(name[i] for name in groups) for i in range(len(keys))]
    names = sorted(groups, key=lambda name: [order.index(value) for order, value in zip(orders, name, strict=True)])
    return [groups[name] for name in names], repeated


def ranked(
    groups: Sequence[Group], metric: str, direction: Direction, picked: Quantile | None = None
) -> tuple[list[Group], list[Difference]]:
    """The settings that have a metric, the best first, and for each but the best how it differs from the best's (best
    less other). picked: what the lower ends of leads rest on, see `statistics.leads`."""
    sign = -1.0 if direction is Direction.min else 1.0
    found = [(group, sample) for group in groups if (sample := group.sample(metric)).values]
    found.sort(key=lambda of: -sign * of[1].mean)
    if not found:
        return [], []
    (_, best), *others = found
    return [group for group, _ in found], leads(best, [sample for _, sample in others], sign, picked)


def ordered(values: Iterable[str]) -> list[str]:
    """Different values: words as they come, then numbers by size."""
    different = list(dict.fromkeys(values))
    return sorted(different, key=lambda value: (as_number(value) is not None, as_number(value) or 0.0))
