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


@dataclass
class LauncherConfig(Settings):
    """What every launcher's configuration is one of."""


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
    def sweep(self, folder: Path, orders: Sequence[RunOrder], entry: Entry) -> int:
        """Run points of the sweep in `folder`, whose sweep.json knows them. Each that ends rebuilds the summary."""


LAUNCHERS: Registry[Launcher] = Registry("launcher")
