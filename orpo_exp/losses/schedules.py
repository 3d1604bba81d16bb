"""Lambda schedules: how the weight that a loss declares moves over the run."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from orpo_exp.registry import Registry
from orpo_exp.schema import Settings


@dataclass
class LamScheduleConfig(Settings):
    """Base of every lambda schedule's configuration."""


class LamSchedule(ABC):
    """Drives the field that a loss names as its `weight_field`, starting from the field's value.

    varies: False only where the weight never changes; one that varies is refused for a loss without such a field.
    """

    Config: ClassVar[type[LamScheduleConfig]]
    varies: ClassVar[bool] = True

    def __init__(self, config: LamScheduleConfig, start: float, total_steps: int) -> None:
        self.config, self.start, self.total_steps = config, start, total_steps

    @abstractmethod
    def weight(self, step: int) -> float:
        """The weight at optimizer step `step`, counted from 1 to `total_steps`."""


LAM_SCHEDULES: Registry[LamSchedule] = Registry("lam_schedule")


@LAM_SCHEDULES.register("constant")
class Constant(LamSchedule):
    """The weight stays at its configured value."""

    varies = False

    @dataclass
    class Config(LamScheduleConfig):
        """Nothing to set."""

    def weight(self, step: int) -> float:
        """The configured value."""
        return self.start
