"""Searches: a sweep whose settings are chosen one after another, from what those before came to."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from typing_extensions import override

from orpo_exp.config import declared_metrics
from orpo_exp.metrics import Direction
from orpo_exp.runs.order import RunOrder
from orpo_exp.runs.states import Queue, State, own_job_id, read_result, slurm_queue
from orpo_exp.schema import ConfigError
from orpo_exp.sweeps.points import TO_RUN, Combination, Plan, current, folder_name
from orpo_exp.sweeps.results import METRIC, SAME, finite
from orpo_exp.sweeps.space import Space
from orpo_exp.sweeps.study import Study, Values, mean_of
from orpo_exp.sweeps.sweep_file import Sweep, SweepPoint, change_sweep, read_sweep
from orpo_exp.sweeps.turns import Turn

Composed = Callable[[Combination], RunOrder]


@dataclass(frozen=True)
class Search:
    """folder: the sweep's. compose: makes a run of a point; it travels with the turns."""

    folder: Path
    space: Space
    study: Study
    compose: Composed

    def outcome(self, values: Values) -> float | None:
        """The mean over the seeds of what the study goes by; nan where one has failed, None before all have ended."""
        points = [self.listed(values, seed) for seed in self.space.seeds]
        return mean_of([self._metric(point) if point else None for point in points])

    def listed(self, values: Values, seed: str) -> SweepPoint | None:
        """The point with these values in sweep.json, if it has begun."""
        swept = self.space.point(values, seed).swept
        sweep = read_sweep(self.folder)
        return next((point for point in (sweep.points if sweep else ()) if point.overrides == swept), None)

    def order(self, number: int, seed: str) -> RunOrder | None:
        """What is to be run of a trial with a seed, listed in sweep.json from now on; None where that has completed."""
        values = self.study.trial(number, self.outcome)
        point = self.space.point(values, seed)
        order = self.compose(point)
        name = folder_name(point, order)
        new = SweepPoint(name, point.swept, order.config.config_hash, own_job_id())

        def added(sweep: Sweep | None) -> Sweep:
            assert sweep is not None, "a search is written down before it is begun"
            points = {point.folder: point for point in sweep.points} | {name: new}
            return replace(sweep, points=list(points.values()))

        change_sweep(self.folder, added)
        result = read_result(self.folder / name) or {}
        return None if result.get("status") == State.completed else replace(order, folder=self.folder / name)

    def _metric(self, point: SweepPoint) -> float | None:
        result = read_result(self.folder / point.folder) or {}
        status = result.get("status")
        if status == State.failed:
            return math.nan
        return finite(result.get("eval")).get(self.study.metric, math.nan) if status == State.completed else None


@dataclass(frozen=True)
class SearchTurn(Turn):
    """The turn of one seed of a trial, counted from 0."""

    search: Search
    number: int
    seed: str

    @property
    @override
    def point(self) -> None:
        return None

    @property
    @override
    def name(self) -> str:
        return f"trial {self.number}, seed {self.seed}" if self.seed else f"trial {self.number}"

    @override
    def order(self) -> RunOrder | None:
        return self.search.order(self.number, self.seed)

    @override
    def ended(self) -> None:
        self.search.study.known(self.search.outcome)


def searched(search: Search, trials: int, overrides: list[str], examples: Sequence[RunOrder]) -> Plan:
    """What a command's trials come to in the sweep's folder: those that have not completed, and are not under way."""
    sweep = read_sweep(search.folder)
    queue = slurm_queue()
    begun = search.study.known(search.outcome)
    states: Counter[State] = Counter()
    turns = []
    for number in range(trials):
        for i, seed in enumerate(search.space.seeds):
            turn = SearchTurn(examples[i], search, number, seed)
            point = search.listed(begun[number], seed) if number < len(begun) else None
            state = state_of_turn(search.folder, sweep, turn, point, queue)
            states[state] += 1
            if state in TO_RUN:
                turns.append(turn)
    told = search.study
    keys = [axis.key for axis in search.space.axes]
    keys += ["seed"] if search.space.seeds != ("",) else []
    name = search.folder.name
    planned = Sweep(examples[0].experiment, name, keys, overrides, [], told.metric, told.direction.value)
    if sweep:
        planned = replace(planned, points=sweep.points, later=sweep.later)
    return Plan(planned, list(examples), states, [turn.like for turn in turns], [turns])


def state_of_turn(folder: Path, sweep: Sweep | None, turn: SearchTurn, point: SweepPoint | None, queue: Queue) -> State:
    """What has become of a turn, whose point is not known before it has begun."""
    if point:
        return current(folder, point, queue)
    return State.queued if sweep and sweep.later.get(turn.name, "") in (queue or {}) else State.missing


def decided_by(orders: Sequence[RunOrder]) -> tuple[str, Direction]:
    """The metric that a search goes by, and its good end: what it was told, else as summaries choose."""
    told = orders[0].config.sweep
    declared = [declared_metrics(order.config) for order in orders]

    def alike(name: str) -> bool:
        return all(name in of for of in declared) and len({of[name].definition for of in declared}) == 1

    metric = told.metric or next((name for name in (METRIC, SAME) if alike(name)), "loss")
    good = told.direction or declared[0][metric].good
    assert good is not None, "checked with the configuration"
    return metric, good


def check_search(space: Space, trials: int) -> None:
    """Refuse with ConfigError a search without a key to search over, or of more trials than there are settings."""
    if not space.axes:
        do = "Write 'loss.lam=tag(log,interval(0.01,2))', say."
        raise ConfigError("sweep.trials", trials, "with an interval or a list for a key other than the seed", do)
    if trials > space.size:
        allowed = f"at most {space.size:.0f}: so many settings there are"
        raise ConfigError("sweep.trials", trials, allowed, "Leave it out, and all of them are run.")
