"""RunOrder: what a rank is told to run."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orpo_exp.config import RunConfig
from orpo_exp.data import SourceData
from orpo_exp.tracking import Tracker

AUTO, NEVER = "auto", "never"  # what `resume` may say instead of a path


def rung_step(share: float, max_steps: int) -> int:
    """The step that a share of all steps comes to, from 1."""
    return max(1, round(share * max_steps))


@dataclass(frozen=True)
class RunOrder:
    """What a rank is told to run: checked configuration, folder, the experiment's name, the command's overrides and
    the options before them.

    until: the share of its steps after which it saves and waits, to be gone on with later; None: to its end.
    data: what the source gave where this process has loaded it already; trackers: whom to tell beside those that were
    configured. Neither travels to another process.
    """

    config: RunConfig
    folder: Path
    experiment: str
    overrides: list[str]
    options: tuple[str, ...] = ()
    until: float | None = None
    data: SourceData | None = field(default=None, compare=False, repr=False)
    trackers: tuple[Tracker, ...] = field(default=(), compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"data": None, "trackers": ()}

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run. One that began at another run's checkpoint still may have to."""
        left_out = ("hydra.run.dir", *(["resume"] if self.config.resume == NEVER else []))
        kept = [o for o in self.overrides if o.partition("=")[0] not in left_out]
        return shlex.join(["python", "-m", "orpo_exp", *self.options, *kept, f"hydra.run.dir={self.folder}"])
