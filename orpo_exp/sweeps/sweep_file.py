"""sweep.json: which points a sweep has."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from orpo_exp.files import write_atomically

SWEEP = "sweep.json"


@dataclass(frozen=True)
class SweepPoint:
    """One run of a sweep. folder: its name below the sweep's. overrides: what sets it apart, key to value as typed.
    job_id: Slurm's number for it (`123_0` in an array), None where Slurm does not run it."""

    folder: str
    overrides: dict[str, str]
    config_hash: str
    job_id: str | None = None


@dataclass(frozen=True)
class Sweep:
    """What sweep.json holds. swept: the keys that vary, as typed. overrides: the command's."""

    experiment: str
    name: str
    swept: list[str]
    overrides: list[str]
    points: list[SweepPoint]


def read_sweep(folder: Path) -> Sweep | None:
    """The sweep of a folder, None where it has no sweep.json. Raises ValueError for one that cannot be understood."""
    path = folder / SWEEP
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Sweep(**content | {"points": [SweepPoint(**point) for point in content["points"]]})
    except (ValueError, TypeError, KeyError) as error:
        problem = f"{path} cannot be understood ({error})"
        raise ValueError(f"{problem}. Remove it and give the sweep's command again.") from error


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Replace sweep.json at once; a reader never sees half of it."""
    write_atomically(folder / SWEEP, json.dumps(asdict(sweep), indent=2) + "\n")
