"""A sweep's points: from a command's values to their folders, and which of them still have to be run."""

import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType

from orpo_exp.config import RunConfig
from orpo_exp.runs.order import RunOrder
from orpo_exp.runs.states import State, slurm_queue
from orpo_exp.schema import ConfigError, Refused, flat
from orpo_exp.sweeps.sweep_file import Sweep, SweepPoint, read_sweep, united
from orpo_exp.sweeps.turns import Stages, Turn

TO_RUN = (State.missing, State.failed, State.interrupted, State.killed, State.waiting, State.set_aside)
LONGEST_NAME = 100  # characters of a point's folder before its hash


@dataclass(frozen=True)
class Combination:
    """One value for each key of a command. overrides: all of them; swept: those that vary, key to value as typed."""

    overrides: list[str]
    swept: dict[str, str]

    @property
    def name(self) -> str:
        """What sets it apart, for people: `loss.lam=0.1,seed=0`."""
        return ",".join(f"{key}={value}" for key, value in self.swept.items())


@dataclass(frozen=True)
class Plan:
    """A sweep as its folder will know it, the points that the command asks for, the state of each, those to be run, and
    in which turns."""

    sweep: Sweep
    asked: list[RunOrder]
    states: Counter[State]
    to_run: list[RunOrder]
    stages: Stages


def combinations(overrides: Sequence[str]) -> list[Combination]:
    """Every combination of the values that the overrides list; the last key varies fastest.

    Raises ConfigError for what cannot be swept; see swept_values.
    """
    choices: dict[str, list[str]] = {}  # an override given twice counts as the later one, as Hydra has it
    swept: set[str] = set()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        name = key.lstrip("+")
        if override.is_sweep_override():
            swept.add(name)
            choices[key] = [f"{key}={value}" for value in swept_values(override, name)]
        else:
            swept.discard(name)
            choices[key] = [str(override.input_line)]
    names = [key.lstrip("+") for key in choices]
    return [
        Combination(list(texts), {n: t.partition("=")[2] for n, t in zip(names, texts, strict=True) if n in swept})
        for texts in itertools.product(*choices.values())
    ]


def swept_values(override: Override, name: str) -> list[str]:
    """The values that a list or a range stands for. Raises ConfigError where there is none, for another kind of sweep,
    and for settings of the sweep itself."""
    given = str(override.input_line).partition("=")[2]
    listed = override.is_discrete_sweep() and override.value_type is not ValueType.GLOB_CHOICE_SWEEP
    if not listed or name.startswith(("hydra", "sweep.")):
        allowed = "one value: only what belongs to a run is swept, and by a list of values or range(...)"
        raise ConfigError(name, given, allowed, "Give one value, or a list.")
    try:
        values = list(override.sweep_string_iterator())
    except ValueError:  # a step of 0
        values = []
    if not values:
        raise ConfigError(name, given, "a range with at least one value", "Write range(start,stop,step).")
    return values


def sweep_name(configs: Sequence[RunConfig], swept: Sequence[str]) -> str:
    """A name for a sweep that was given none: from which keys are swept, and from all that its points have in common.

    The swept keys' own values have no part in it, so that a sweep with more values finds the folder it had with fewer.
    """
    contents = [flat(config.identity()) for config in configs]
    common = {
        key: value
        for key, value in contents[0].items()
        if not any(belongs(key, name) for name in swept) and all(c.get(key, ...) == value for c in contents)
    }
    return hashlib.sha256(json.dumps([sorted(swept), common], sort_keys=True).encode()).hexdigest()[:8]


def plan(folder: Path, experiment: str, overrides: list[str], orders: Sequence[tuple[Combination, RunOrder]]) -> Plan:
    """What a command's points come to in the sweep's folder: known points are found again, equal ones become one.

    overrides: the command's. Raises ConfigError for a sweep.json that cannot be understood, where two points would
    share a folder, and where only Slurm could say what has become of a point but does not answer.
    """
    try:
        known = read_sweep(folder)
    except Refused as error:
        raise ConfigError("hydra.sweep.dir", str(folder), "a sweep's folder, or a new one", str(error)) from error
    listed = known.points if known else []
    keys = {*orders[0][0].swept, *(key for point in listed for key in point.overrides)}
    numeric = {key for _, order in orders for key in flat(order.config.numeric(whole=True))}
    changing = {key for key in keys if changes_numbers(numeric, key)}

    def identity(point: SweepPoint) -> object:
        """Equal numbers are one point, unless what is swept is of the kind that changes none, e.g. processes."""
        return point.config_hash, *(f"{key}={value}" for key, value in point.overrides.items() if key not in changing)

    points = {identity(point): point for point in listed}
    asked: dict[str, RunOrder] = {}
    for combination, order in orders:
        new = SweepPoint(folder_name(combination, order), combination.swept, order.config.config_hash)
        same = points.get(identity(new), new)
        # a known point also has the keys that are swept only since, or that its component did not have then
        point = points[identity(new)] = replace(same, overrides=new.overrides | same.overrides)
        asked[point.folder] = replace(order, folder=folder / point.folder)
    if len({point.folder for point in points.values()}) < len(points):
        allowed = f"values that differ in the first {LONGEST_NAME} characters of a point's name"
        raise ConfigError("--multirun", " ".join(overrides), allowed, "Sweep over names of files in one folder, say.")

    told = orders[0][1].config.sweep
    swept, good = list(orders[0][0].swept), told.direction and told.direction.value
    planned = Sweep(experiment, folder.name, swept, overrides, list(points.values()), told.metric, good)
    sweep = united(known, planned)
    queue = slurm_queue()
    if queue is None and shutil.which("squeue"):
        for point in sweep.points:
            if point.folder in asked and point.job_id and current(folder, point, None) is not State.completed:
                allowed = f"a sweep of whose jobs Slurm tells; squeue does not answer, and {point.job_id} may be one"
                raise ConfigError("hydra.sweep.dir", str(folder), allowed, "Give the command again later.")
    states = {p.folder: current(folder, p, queue) for p in sweep.points if p.folder in asked}
    to_run = [asked[name] for name, state in states.items() if state in TO_RUN]
    return Plan(sweep, list(asked.values()), Counter(states.values()), to_run, [[Turn(order) for order in to_run]])


def current(folder: Path, point: SweepPoint, queue: Mapping[str, str] | None) -> State:
    """A point's state, where one that has stopped is still running as long as its job has not left Slurm."""
    state = point.state(folder, queue)
    stopped = state in TO_RUN and state is not State.set_aside
    return State.running if stopped and point.job(queue) in (queue or {}) else state


def folder_name(combination: Combination, order: RunOrder) -> str:
    """What a point's folder is called: what sets it apart, and the start of its hash."""
    text = re.sub(r"[^\w.=,+-]+", "-", combination.name, flags=re.ASCII)[:LONGEST_NAME]
    return f"{text or 'run'}_{order.config.config_hash[:8]}"


def changes_numbers(numeric: Collection[str], name: str) -> bool:
    """Whether what an override of this name sets is among the keys that can change a number, whatever it is set to.

    Of a group it is the choice that is asked for: numbers can depend on a plugin's precision, not on which it is.
    """
    if "." not in name:
        return name in numeric or f"choices.{name}" in numeric
    return any(belongs(key, name) for key in numeric)


def belongs(key: str, name: str) -> bool:
    """Whether a configuration's key is what an override of this name sets: the key itself, or within the group."""
    return key in (name, f"choices.{name}") or key.startswith(f"{name}.")
