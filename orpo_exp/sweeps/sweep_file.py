"""sweep.json: which points a sweep has."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from orpo_exp.files import locked, write_atomically
from orpo_exp.runs.states import Queue, State, read_result, state_of
from orpo_exp.schema import Refused

SWEEP = "sweep.json"
LOCK = ".sweep.lock"


@dataclass(frozen=True)
class SweepPoint:
    """One run of a sweep. folder: its name below the sweep's. overrides: what sets it apart, key to value as typed.
    job_id: Slurm's number for it (`123_0` in an array), None where Slurm does not run it. later_jobs: those that go on
    with it, one after the other."""

    folder: str
    overrides: dict[str, str]
    config_hash: str
    job_id: str | None = None
    later_jobs: list[str] = field(default_factory=list)

    @property
    def jobs(self) -> list[str]:
        """All of them, the first to begin first."""
        return [self.job_id, *self.later_jobs] if self.job_id else []

    def job(self, queue: Queue) -> str | None:
        """The one that is running or comes next, else the last one; None where Slurm does not run it."""
        return next((job for job in self.jobs if job in (queue or {})), self.jobs[-1] if self.jobs else None)

    def state(self, sweep: Path, queue: Queue) -> State:
        """What has become of it. sweep: the sweep's folder. queue: see slurm_queue."""
        place = sweep / self.folder
        if self.later_jobs:  # one that was set aside has jobs that will find so
            result = read_result(place) or {}
            if result.get("status") == State.set_aside and result.get("job_id") in self.jobs:
                return State.set_aside
        return state_of(place, self.job(queue), queue)

    def submitted(self, jobs: Sequence[str]) -> "SweepPoint":
        """The same with other jobs."""
        return replace(self, job_id=jobs[0], later_jobs=list(jobs[1:]))


@dataclass(frozen=True)
class Sweep:
    """What sweep.json holds. swept: the keys that vary, as typed. overrides: the command's. metric, direction: what it
    was told to be decided by, and which end of that is good. later: Slurm's jobs of turns whose points are not known
    before they begin, by the turns' names."""

    experiment: str
    name: str
    swept: list[str]
    overrides: list[str]
    points: list[SweepPoint]
    metric: str | None = None
    direction: str | None = None
    later: dict[str, str] = field(default_factory=dict)

    @property
    def by_slurm(self) -> bool:
        """Whether Slurm runs any of it, or is to."""
        return bool(self.later) or any(point.jobs for point in self.points)

    def not_begun(self, queue: Queue) -> list[str]:
        """The names of the turns whose jobs Slurm still holds back. queue: see slurm_queue."""
        begun = {job for point in self.points for job in point.jobs}
        return [name for name, job in self.later.items() if job in (queue or {}) and job not in begun]


def read_sweep(folder: Path) -> Sweep | None:
    """The sweep of a folder, None where it has no sweep.json. Raises Refused for one that cannot be understood."""
    path = folder / SWEEP
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Sweep(**content | {"points": [SweepPoint(**point) for point in content["points"]]})
    except (ValueError, TypeError, KeyError) as error:
        problem = f"{path} cannot be understood ({error})"
        raise Refused(f"{problem}. Remove it and give the sweep's command again.") from error


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Replace sweep.json at once; a reader never sees half of it."""
    write_atomically(folder / SWEEP, json.dumps(asdict(sweep), indent=2) + "\n")


def change_sweep(folder: Path, change: Callable[[Sweep | None], Sweep]) -> Sweep:
    """Replace sweep.json by what `change` makes of it, nobody else changing it meanwhile; what it then says."""
    with locked(folder / LOCK):
        sweep = change(read_sweep(folder))
        write_sweep(folder, sweep)
    return sweep


def united(known: Sweep | None, planned: Sweep) -> Sweep:
    """A planned sweep beside a known one. Of a point in both the known job id stays, and the keys are united."""
    if known is None:
        return planned
    points = {point.folder: point for point in known.points}
    for point in planned.points:
        old = points.get(point.folder, point)
        points[point.folder] = replace(old, overrides=point.overrides | old.overrides)
    swept = list(dict.fromkeys([*known.swept, *planned.swept]))
    return replace(planned, swept=swept, points=list(points.values()))


def add_points(folder: Path, planned: Sweep) -> Sweep:
    """Write a planned sweep beside what sweep.json says by now, to which others may have added since it was planned."""
    return change_sweep(folder, lambda found: united(found, planned))
