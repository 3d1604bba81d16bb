"""Racing: after each rung, a share of the steps, settings that are clearly behind the best one are set aside.

A race is a sweep in stages, one up to each rung and one to the end. Whoever comes first after a stage decides, from
what lies in the points' folders, which then rests, and writes the decision down; all others read it. So nobody has to
wait for a stage to end, and machines need to share nothing but the sweep's folder.

A setting is set aside with all its seeds where the lower end of the best one's lead over it is above 0. The leads are
those of summaries (`groups.ranked`), of a level at which all rungs together err in 5% of races: the setting that is
the best at a rung is set aside in no more. Of what would have come after the rung that says nothing: curves may cross.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from orpo_exp.files import locked, write_atomically
from orpo_exp.metrics import Direction
from orpo_exp.pages import write_run_page
from orpo_exp.runs.folder import set_aside
from orpo_exp.runs.order import RunOrder, rung_step
from orpo_exp.runs.states import State, read_result
from orpo_exp.schema import ConfigError, Refused
from orpo_exp.sweeps.decisions import RACES, Decision, Standing, out_of, read_decisions
from orpo_exp.sweeps.groups import SEED, Group, Point, grouped, ranked
from orpo_exp.sweeps.headline import ahead, cell
from orpo_exp.sweeps.intervals import Quantile, ahead_of_one
from orpo_exp.sweeps.points import Combination, Plan
from orpo_exp.sweeps.results import Results, finite, ranking_metric, read_results
from orpo_exp.sweeps.turns import Turn
from orpo_exp.tracking.console import number
from orpo_exp.tracking.jsonl import FILE, read_metrics

LOCK = ".races.lock"
WRONG = 0.05  # the share of races that set aside a setting which is the best at some rung
NO_METRICS = ("step", "split", "time")


@dataclass(frozen=True)
class Race:
    """folder: the sweep's. points: their folders' names. rungs: shares of the steps. metric, direction: what decides
    and its good end; None: as summaries choose it, and as it is declared."""

    folder: Path
    points: tuple[str, ...]
    rungs: tuple[float, ...]
    metric: str | None = None
    direction: Direction | None = None

    @property
    def file(self) -> Path:
        """Where its decisions are written down: races of other points, rungs or metrics have files of their own."""
        content = [sorted(self.points), self.rungs, self.metric, self.direction]
        return self.folder / RACES / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]}.json"

    def made(self) -> list[Decision]:
        """The decisions so far."""
        return read_decisions(self.file)

    def decided(self, count: int) -> list[Decision]:
        """The decisions after so many rungs; those that are not made yet are made now, and what they set aside says so.

        Nothing of the race may be running that has not come so far.
        """
        if len(known := self.made()) >= count:
            return known[:count]
        self.file.parent.mkdir(exist_ok=True)
        with locked(self.folder / LOCK):
            known = self.made()
            while len(known) < count:
                known.append(self._decide(self.rungs[len(known)], out_of(known)))
                for name, why in known[-1].set_aside.items():
                    if set_aside(self.folder / name, why):
                        write_run_page(self.folder / name)
                content = {"points": list(self.points), "rungs": list(self.rungs)}
                content["decisions"] = [asdict(decision) for decision in known]
                write_atomically(self.file, json.dumps(content, indent=2) + "\n")
        return known[:count]

    def _decide(self, share: float, out: Mapping[str, str]) -> Decision:
        results = read_results([self.folder])
        racing = [
            point for point in results.points if point.folder.name in self.points and point.folder.name not in out
        ]
        so_far = at_rung(results, racing, share)
        metric = self.metric or ranking_metric(so_far)
        direction = self.direction or so_far.metric(metric).good
        if direction is None:
            raise Refused(f"{metric} has no end known as the good one: give sweep.direction=max or min.")
        standings = compared(so_far.groups, metric, direction, lower_end(len(self.rungs)))
        behind = {tuple(of.setting.values()): of for of in standings if of.out}
        set_aside = {
            point.folder.name: why(standings[0], of, metric, share)
            for point in racing
            if (of := behind.get(tuple(point.settings.get(key, "") for key in results.keys)))
            and point.state is not State.completed
        }
        return Decision(share, metric, direction, standings, set_aside)


def lower_end(rungs: int) -> Quantile:
    """What the lower ends of leads rest on, such that so many rungs together err in a share of WRONG."""
    return partial(ahead_of_one, wrong=WRONG / rungs)


def compared(groups: Sequence[Group], metric: str, direction: Direction, picked: Quantile) -> list[Standing]:
    """The settings, the best first, and which of them are to be set aside: two seeds at least say so, seed by seed."""
    ranking, behind = ranked(groups, metric, direction, picked)
    standings = []
    for place, group in enumerate(ranking):
        lead = ahead(behind[place - 1], direction) if place else None
        out = lead is not None and lead.common and lead.n > 1 and lead.low is not None and lead.low > 0
        standings.append(Standing(group.setting, len(group.points), group.sample(metric).mean, lead, out))
    return standings


def at_rung(results: Results, points: Sequence[Point], share: float) -> Results:
    """The results as they were when these points had come to a share of their steps; of the others there is nothing."""
    there = [now for point in points if (now := point_at(point, share))]
    groups, repeated = grouped(there, results.keys)
    return replace(results, points=there, groups=groups, repeated=repeated)


def point_at(point: Point, share: float) -> Point | None:
    """A point as it was at a share of its steps; None where it did not come so far, or was not evaluated there."""
    result = read_result(point.folder) or {}
    record = evaluated_at(point.folder, result, share)
    if record is None:
        return None
    metrics = finite({name: value for name, value in record.items() if name not in NO_METRICS})
    return replace(point, state=State.completed, metrics=metrics, test={}, steps=record["step"])


def evaluated_at(folder: Path, result: Mapping[str, Any], share: float) -> dict[str, Any] | None:
    """A run's evaluation at a share of its steps."""
    total = result.get("total_steps")
    if not total:
        return None
    step = rung_step(share, total)
    return next((of for of in read_metrics(folder / FILE, "eval") if of["step"] == step), None)


def why(best: Standing, behind: Standing, metric: str, share: float) -> str:
    """Why a setting is set aside, in a line."""
    return (
        f"after {share:g} of the steps {metric} is {number(behind.mean)}, behind {best.name} by {cell(behind.lead)};"
        " what would have come later nobody knows"
    )


@dataclass(frozen=True)
class RaceTurn(Turn):
    """A point's turn in one stage of a race. stage: how many rungs lie behind. since: when the sweep was started, in
    seconds since 1970: what has failed since is not tried again in a later stage."""

    race: Race
    stage: int
    since: float

    @override
    def order(self) -> RunOrder | None:
        folder = self.like.folder
        until = self.race.rungs[self.stage] if self.stage < len(self.race.rungs) else None
        if folder.name in out_of(self.race.decided(self.stage)):
            return None
        result = read_result(folder) or {}
        status, heartbeat = result.get("status"), result.get("heartbeat") or 0.0
        if status == State.completed or (status == State.failed and heartbeat >= self.since):
            return None
        if until is not None and (record := evaluated_at(folder, result, until)):
            steps = result.get("steps", 0)
            if steps > record["step"] or (steps == record["step"] and status == State.waiting):
                return None
        return replace(self.like, until=until)


def raced(folder: Path, planned: Plan) -> Plan:
    """The plan of a sweep as one of a race: a stage up to each rung, one to the end; none has what is set aside."""
    told = planned.asked[0].config.sweep
    points = tuple(order.folder.name for order in planned.asked)
    race = Race(folder, points, tuple(told.rungs), told.metric, told.direction)
    out, since = out_of(race.made()), time.time()
    to_run = [order for order in planned.to_run if order.folder.name not in out]
    stages = [[RaceTurn(order, race, stage, since) for order in to_run] for stage in range(len(race.rungs) + 1)]
    return replace(planned, to_run=to_run, stages=stages)


def check_race(points: Sequence[Combination]) -> None:
    """Refuse with ConfigError a race of settings with a single seed, or of one setting."""
    seeds = Counter(tuple(value for key, value in of.swept.items() if key != SEED) for of in points)
    if len(seeds) < 2:
        do = "Sweep over a key, loss.lam=0.1,0.5 say."
        raise ConfigError("sweep.racing", True, f"with two settings or more; here there is {len(seeds)}", do)
    if min(seeds.values()) < 2:
        allowed = "with two seeds or more of each setting: one cannot tell a setting from its luck"
        raise ConfigError("sweep.racing", True, allowed, "Add seed=0,1,2.")
