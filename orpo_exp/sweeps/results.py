"""The points of one sweep or several as rows: settings, seed, state, numbers; and the rows grouped over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from orpo_exp.metrics import Metric, from_json
from orpo_exp.pair_tables import PAIRS, TEST_PAIRS
from orpo_exp.runs.states import RESULT, Queue, State, read_result, slurm_queue, state_of
from orpo_exp.schema import Refused
from orpo_exp.sweeps.conditions import CONFIG, as_number, canonical, read_settings
from orpo_exp.sweeps.held_out import HeldOut
from orpo_exp.sweeps.statistics import Estimate, Sample, estimate
from orpo_exp.sweeps.sweep_file import Sweep, SweepPoint, read_sweep

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
        """Its final evaluation pair by pair, None where that was not written down (before version 0.2)."""
        return HeldOut.read(self.folder / PAIRS, self.steps)

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
        return ", ".join(f"{key}={value}" for key, value in self.setting.items()) or "all seeds"

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


@dataclass
class Results:
    """All points of the given sweeps.

    keys: what was swept but the seed, in the order typed. along: keys that vary too, but are settled by the former.
    repeated: completed points left out because another one has the same setting and seed.
    """

    title: str
    keys: list[str]
    along: list[str]
    points: list[Point]
    groups: list[Group]
    repeated: list[Point]

    @property
    def counted(self) -> list[Point]:
        """The points that the settings consist of."""
        return [point for group in self.groups for point in group.points]

    @property
    def measured(self) -> set[str]:
        """The metrics that a counted point has."""
        return {name for point in self.counted for name in point.metrics}

    def metric(self, name: str) -> Metric:
        """What a metric is, as the first point says; its name alone where none does."""
        found = [point.declared[name] for point in self.counted if name in point.declared]
        return found[0] if found else from_json(None).get(name, Metric(name.replace("_", " ")))

    def definitions(self, name: str) -> dict[str, list[str]]:
        """The ways in which a metric is computed, and the settings that do so; empty where a run does not say."""
        found: dict[str, list[str]] = {}
        for group in self.groups:
            declared = [point.declared.get(name) for point in group.points if name in point.metrics]
            for way in dict.fromkeys(metric.definition if metric else "" for metric in declared):
                found.setdefault(way, []).append(group.name)
        return found

    @property
    def seconds(self) -> float:
        """Wall time of all points, every attempt counted."""
        return sum(point.seconds for point in self.points)

    @property
    def gpu_hours(self) -> float:
        """A run's processes, each on its GPU, times its wall time."""
        return sum(point.seconds * point.gpus for point in self.points) / 3600

    @property
    def core_hours(self) -> float:
        """The cores a run without a GPU may use, times its wall time."""
        return sum(point.seconds * point.cores for point in self.points if not point.gpus) / 3600


def read_results(folders: Sequence[Path]) -> Results:
    """Read sweeps' folders, with a sweep.json or without. Raises Refused for a folder that holds no runs."""
    queue = slurm_queue()
    points, places, typed, titles = [], [], [], []
    for folder in folders:
        sweep = read_sweep(folder)
        typed += [key.lstrip("+") for key in sweep.swept] if sweep else []
        titles.append(f"{sweep.experiment}, {sweep.name}" if sweep else folder.resolve().name)
        listed = points_of(folder, sweep)
        points += [read_point(folder / place.folder, place.job_id, queue) for place in listed]
        places += listed
    # beside runs that tell what can change a number, others are told apart by the same keys
    conditions = {key for point in points if point.kept for key in point.settings}
    for point, place in zip(points, places, strict=True):
        if conditions and not point.kept:
            point.settings = {key: value for key, value in point.settings.items() if key in conditions}
        point.settings |= {key.lstrip("+"): canonical(value) for key, value in place.overrides.items()}
    configured = [p for p in points if p.state is not State.running and (p.folder / CONFIG).exists()]
    added, along = further_keys(configured, typed)
    keys = [*(key for key in dict.fromkeys(typed) if key != SEED), *added]
    groups, repeated = grouped(points, keys)
    return Results("; ".join(titles), keys, along, points, groups, repeated)


def points_of(folder: Path, sweep: Sweep | None) -> list[SweepPoint]:
    """The points that sweep.json lists or, without it, the runs in the folder. Raises Refused where there are none."""
    if sweep:
        return sweep.points
    runs = sorted(place.name for place in folder.iterdir() if (place / RESULT).exists()) if folder.is_dir() else []
    if not runs:
        raise Refused(f"{folder} is not a sweep's folder: there is no sweep.json, and no folder of a run in it.")
    return [SweepPoint(name, {}, "") for name in runs]


def read_point(folder: Path, job_id: str | None, queue: Queue) -> Point:
    """One run's row."""
    result = read_result(folder) or {}
    state = state_of(folder, job_id, queue)
    hardware = result.get("hardware") or {}
    return Point(
        folder=folder,
        settings=read_settings(folder, result),
        state=state,
        reason=reason(state, result, job_id),
        kept="settings" in result,
        config_hash=result.get("config_hash"),
        metrics=finite(result.get("eval")),
        test=finite(result.get("test")),
        declared=from_json(result.get("metrics")),
        steps=result.get("steps", 0),
        seconds=result.get("wall_time_seconds", 0.0),
        gpus=result.get("world_size", 1) if hardware.get("gpus") else 0,
        cores=hardware.get("cores", 0),
    )


def finite(metrics: Mapping[str, float | None] | None) -> dict[str, float]:
    """Those that are finite numbers."""
    return {name: float(of) for name, of in (metrics or {}).items() if of is not None and math.isfinite(of)}


def reason(state: State, result: Mapping[str, Any], job_id: str | None) -> str | None:
    """Why a point has no result to count, in a line."""
    steps = f"after step {result.get('steps', 0)}" + (f" of {total}" if (total := result.get("total_steps")) else "")
    heartbeat = result.get("heartbeat")
    last = f"{datetime.fromtimestamp(heartbeat):%Y-%m-%d %H:%M:%S}" if heartbeat else "at an unknown time"
    lines = str(result.get("error") or "no reason given").strip().splitlines()
    if state is State.killed and not result:
        return f"its job {job_id} ended before the run wrote anything; logs/ may say why"
    return {
        State.missing: "never started",
        State.queued: f"waits in Slurm's queue as job {job_id or result.get('job_id')}",
        State.running: f"still running, {steps}" if result else "its job has begun",
        State.completed: None,
        State.failed: lines[-1],
        State.interrupted: f"asked to stop {steps}",
        State.killed: f"killed {steps}; last heard of {last} on {result.get('host')}",
    }[state]


def further_keys(points: Sequence[Point], given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Keys whose values tell points apart that are alike in the given ones, and keys that vary along with those.

    Group choices come first in `settings`, so that what follows from one is not taken for a condition of its own.
    """

    def kinds(keys: Sequence[str]) -> int:
        return len({tuple(point.settings.get(key) for key in keys) for point in points})

    added: list[str] = []
    along: list[str] = []
    for key in dict.fromkeys(key for point in points for key in point.settings):
        if key not in (*given, SEED) and kinds([key]) > 1:
            tells_apart = kinds([*given, *added, key]) > kinds([*given, *added])
            (added if tells_apart else along).append(key)
    return added, along


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


def ordered(values: Iterable[str]) -> list[str]:
    """Different values: words as they come, then numbers by size."""
    different = list(dict.fromkeys(values))
    return sorted(different, key=lambda value: (as_number(value) is not None, as_number(value) or 0.0))
