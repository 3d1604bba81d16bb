"""Lambda schedules: how the weight that a loss declares moves over the run."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from typing_extensions import override

from orpo_exp.registry import Registry
from orpo_exp.schema import Settings, check_steps, in_steps, setting


@dataclass
class LamScheduleConfig(Settings):
    """Base of every lambda schedule's configuration."""


class LamSchedule(ABC):
    """Drives the field that a loss names as its `weight_field`, starting from the field's value.

    varies: False only where the weight never changes; one that varies is refused for a loss without such a field.
    needs_metrics: training metrics that `update` reads; a loss that does not report them is refused.
    """

    Config: ClassVar[type[LamScheduleConfig]] = LamScheduleConfig
    varies: ClassVar[bool] = True
    needs_metrics: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: LamScheduleConfig, start: float, total_steps: int) -> None:
        self.config, self.start, self.total_steps = config, start, total_steps

    @abstractmethod
    def weight(self, step: int) -> float:
        """The weight at optimizer step `step`, counted from 1 to `total_steps`."""

    # not abstract: most schedules do not look at the run
    def update(self, metrics: Mapping[str, float]) -> None:  # noqa: B027
        """Take note of a step's metrics, those of the whole global batch; called once after each optimizer step."""

    def state_dict(self) -> dict[str, float]:
        """What `update` has left behind: part of the run's state."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:  # noqa: B027
        """Go on from a `state_dict`."""


LAM_SCHEDULES: Registry[LamSchedule] = Registry("lam_schedule")


@LAM_SCHEDULES.register("constant")
class Constant(LamSchedule):
    """The weight stays at its configured value."""

    varies = False

    @override
    def weight(self, step: int) -> float:
        return self.start


class Ramp(LamSchedule):
    """A weight that changes over the first steps n and then stays: start * factor((step - 1) / (n - 1))."""

    @dataclass
    class Config(LamScheduleConfig):
        """steps: how long it takes, below 1 a share of all steps, from 1 on a number of steps; None: all of them."""

        steps: float | None = setting(None, ge=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.steps is not None:
                check_steps("steps", self.steps)

    config: Config

    @override
    def weight(self, step: int) -> float:
        """Step 1 has the ramp's first value, step n exactly its last; a ramp of at most one step is past."""
        steps = self.total_steps if self.config.steps is None else in_steps(self.config.steps, self.total_steps)
        return self.start * self.factor((step - 1) / (steps - 1) if step < steps else 1.0)

    @abstractmethod
    def factor(self, progress: float) -> float:
        """The factor on the configured weight; `progress` runs from 0 to 1."""


@LAM_SCHEDULES.register("linear_warmup")
class LinearWarmup(Ramp):
    """A straight line from a share of the configured weight up to all of it: initial + (1 - initial) * progress."""

    @dataclass
    class Config(Ramp.Config):
        """initial: the share of the weight at the first step. steps: see Ramp."""

        initial: float = setting(0.0, ge=0, le=1)
        steps: float | None = setting(0.25, ge=0)

    config: Config

    @override
    def factor(self, progress: float) -> float:
        return self.config.initial * (1.0 - progress) + progress


class Decay(Ramp):
    """A ramp down to a share of the weight."""

    @dataclass
    class Config(Ramp.Config):
        """final: the share of the weight that the decay leads to. steps: see Ramp."""

        final: float = setting(0.0, ge=0, le=1)

    config: Config


@LAM_SCHEDULES.register("linear_decay")
class LinearDecay(Decay):
    """A straight line from the configured weight down to a share of it: 1 - progress + final * progress."""

    @override
    def factor(self, progress: float) -> float:
        return 1.0 - progress + self.config.final * progress


@LAM_SCHEDULES.register("cosine_decay")
class CosineDecay(Decay):
    """Half a cosine wave down to a share of the weight: final + (1 - final) * (1 + cos(pi * progress)) / 2."""

    @override
    def factor(self, progress: float) -> float:
        wave = 0.5 * (1.0 + math.cos(math.pi * progress))
        return wave + self.config.final * (1.0 - wave)


@LAM_SCHEDULES.register("step")
class Step(LamSchedule):
    """The weight is multiplied by a factor at given points: start * factor^(number of points passed)."""

    @dataclass
    class Config(LamScheduleConfig):
        """factor: what the weight is multiplied by. at: after how many steps, below 1 shares of all steps."""

        factor: float = setting(0.5, ge=0, le=100)
        at: list[float] = field(default_factory=lambda: [0.5, 0.75])

        def __post_init__(self) -> None:
            super().__post_init__()
            for point in self.at:
                check_steps("at", point)

    config: Config

    @override
    def weight(self, step: int) -> float:
        """A point of n steps is passed from step n + 1 on."""
        passed = sum(step > in_steps(point, self.total_steps) for point in self.config.at)
        return self.start * self.config.factor**passed


class Wave(Enum):
    """The shape of a cycle, from 1 at its start to 0 in its middle and back."""

    cosine = "cosine"
    triangle = "triangle"


@LAM_SCHEDULES.register("cyclic")
class Cyclic(LamSchedule):
    """The weight swings between its configured value and a share of it: start * (low + (1 - low) * wave(phase)).

    The phase, in cycles, runs from 0 at the first step to `cycles` at the last. cosine: (1 + cos(2 pi phase)) / 2;
    triangle: |1 - 2 * (phase mod 1)|.
    """

    @dataclass
    class Config(LamScheduleConfig):
        """cycles: how many in the whole run. low: the lowest share of the weight. wave: the shape of a cycle."""

        cycles: float = setting(4.0, gt=0)
        low: float = setting(0.0, ge=0, le=1)
        wave: Wave = Wave.cosine

    config: Config

    @override
    def weight(self, step: int) -> float:
        phase = self.config.cycles * (step - 1) / max(self.total_steps - 1, 1) % 1.0
        if self.config.wave is Wave.cosine:
            height = 0.5 * (1.0 + math.cos(2.0 * math.pi * phase))
        else:
            height = abs(1.0 - 2.0 * phase)
        return self.start * (height + self.config.low * (1.0 - height))
