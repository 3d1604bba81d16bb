"""What a launcher is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from orpo_exp.launchers.job import Entry
from orpo_exp.registry import Registry
from orpo_exp.runs.order import RunOrder
from orpo_exp.schema import Settings
from orpo_exp.sweeps.turns import Stages


@dataclass
class LauncherConfig(Settings):
    """What every launcher's configuration is one of."""


@dataclass(frozen=True)
class Elsewhere:
    """Where runs are run if not here. ranks: of each. device: cpu or cuda. sharers: ranks that share the memory there
    is; there: its bytes, None where that is not known."""

    ranks: int
    device: str
    sharers: int
    there: int | None


@dataclass(frozen=True)
class Finding:
    """What was found out about where runs are to be run. fine: False where they never would be."""

    fine: bool
    text: str


class Launcher(ABC):
    """Runs a single run, or the points of a sweep. Both return an exit code, and may return before all has ended.

    foreground: a single run is run right here, and so may have been started by torchrun.
    """

    Config: ClassVar[type[LauncherConfig]] = LauncherConfig
    foreground: ClassVar[bool] = False

    def __init__(self, config: LauncherConfig) -> None:
        self.config = config

    @abstractmethod
    def check(self, orders: Sequence[RunOrder]) -> None:
        """Refuse with ConfigError what cannot be run here, before anything is started."""

    @abstractmethod
    def run(self, order: RunOrder, entry: Entry) -> int:
        """Run a single run in its folder."""

    @abstractmethod
    def sweep(self, folder: Path, stages: Stages, entry: Entry) -> int:
        """Run points of the sweep in `folder`, stage by stage. Each that ends rebuilds the summary."""

    @abstractmethod
    def at_a_time(self, orders: Sequence[RunOrder]) -> int:
        """How many points of a sweep are run side by side, at most."""

    def on_a_gpu(self) -> int:
        """How many points share a GPU, at most."""
        return 1

    def elsewhere(self) -> Elsewhere | None:
        """Where runs are run; None: here."""
        return None

    def time_limit(self) -> float | None:
        """Seconds after which a run is cut off, to go on later; None: never."""
        return None

    def findings(self) -> list[Finding]:
        """Whether what is asked for is there, as far as that can be found out without asking for it."""
        return []


LAUNCHERS: Registry[Launcher] = Registry("launcher")
