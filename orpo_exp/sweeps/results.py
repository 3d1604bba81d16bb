"""The points of one sweep or several, read from their folders: settings, seed, state, numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from orpo_exp.metrics import Direction, Metric, from_json
from orpo_exp.runs.states import RESULT, Queue, State, read_result, slurm_queue
from orpo_exp.schema import Refused
from orpo_exp.sweeps.conditions import CONFIG, canonical, read_settings
from orpo_exp.sweeps.decisions import Decision, latest_decisions
from orpo_exp.sweeps.groups import SEED, Group, Point, grouped
from orpo_exp.sweeps.sweep_file import Sweep, SweepPoint, read_sweep

METRIC, SAME = "rewards/accuracy", "logps/accuracy"  # what ranks; what all losses define alike


@dataclass
class Results:
    """All points of the given sweeps.

    keys: what was swept but the seed, in the order typed. along: keys that vary too, but are settled by the former.
    repeated: completed points left out because another one has the same setting and seed. asked: the metric that the
    sweeps were told to be decided by, if any; good: its good end, where they were told that. decisions: of the sweeps'
    latest races.
    """

    title: str
    keys: list[str]
    along: list[str]
    points: list[Point]
    groups: list[Group]
    repeated: list[Point]
    asked: str | None = None
    good: Direction | None = None
    decisions: Sequence[Decision] = ()

    @property
    def set_aside(self) -> list[Group]:
        """The settings that a race has set aside, as far as their points came."""
        points = [replace(point, state=State.completed) for point in self.points if point.state is State.set_aside]
        return grouped(points, self.keys)[0]

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


def ranking_metric(results: Results) -> str:
    """What ranks where nobody says: the first of the two accuracies that all settings have and define alike; without
    one rewards/accuracy nevertheless, or the loss where no run has that."""
    for name in (METRIC, SAME):
        if all(group.values(name) for group in results.groups) and len(results.definitions(name)) == 1:
            return name
    return "loss" if "loss" in results.measured and METRIC not in results.measured else METRIC


def read_results(folders: Sequence[Path]) -> Results:
    """Read sweeps' folders, with a sweep.json or without. Raises Refused for a folder that holds no runs."""
    queue = slurm_queue()
    points, places, typed, titles, asked = [], [], [], [], set()
    for folder in folders:
        sweep = read_sweep(folder)
        typed += [key.lstrip("+") for key in sweep.swept] if sweep else []
        titles.append(f"{sweep.experiment}, {sweep.name}" if sweep else folder.resolve().name)
        asked.add((sweep.metric, sweep.direction) if sweep else (None, None))
        listed = points_of(folder, sweep)
        points += [read_point(folder, place, queue) for place in listed]
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
    decisions = [decision for folder in folders for decision in latest_decisions(folder)]
    metric, good = asked.pop() if len(asked) == 1 else (None, None)
    return Results(
        "; ".join(titles), keys, along, points, groups, repeated, metric, Direction(good) if good else None, decisions
    )


def points_of(folder: Path, sweep: Sweep | None) -> list[SweepPoint]:
    """The points that sweep.json lists or, without it, the runs in the folder. Raises Refused where there are none."""
    if sweep:
        return sweep.points
    runs = sorted(place.name for place in folder.iterdir() if (place / RESULT).exists()) if folder.is_dir() else []
    if not runs:
        raise Refused(f"{folder} is not a sweep's folder: there is no sweep.json, and no folder of a run in it.")
    return [SweepPoint(name, {}, "") for name in runs]


def read_point(sweep: Path, place: SweepPoint, queue: Queue) -> Point:
    """One run's row."""
    folder = sweep / place.folder
    result = read_result(folder) or {}
    state = place.state(sweep, queue)
    hardware = result.get("hardware") or {}
    return Point(
        folder=folder,
        settings=read_settings(folder, result),
        state=state,
        reason=reason(state, result, place.job(queue)),
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
        State.waiting: f"waits {steps}, to be compared with the others",
        State.set_aside: lines[-1],
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
