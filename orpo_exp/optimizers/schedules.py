"""Learning-rate schedules: constant, linear, cosine and inverse root, each after a linear warmup."""

import math
from dataclasses import dataclass

from typing_extensions import override

from orpo_exp.optimizers.base import SCHEDULERS, Scheduler, SchedulerConfig
from orpo_exp.schema import setting


class Decay(Scheduler):
    """A schedule that falls to a share of the peak rate."""

    @dataclass
    class Config(SchedulerConfig):
        """final: the factor on the peak rate that the decay leads to."""

        final: float = setting(0.0, ge=0, le=1)

    config: Config


@SCHEDULERS.register("constant")
class Constant(Scheduler):
    """The peak rate to the end."""

    @override
    def decay(self, progress: float) -> float:
        return 1.0


@SCHEDULERS.register("linear")
class Linear(Decay):
    """A straight line from the peak rate to its final share."""

    @override
    def decay(self, progress: float) -> float:
        return 1.0 + (self.config.final - 1.0) * progress


@SCHEDULERS.register("cosine")
class Cosine(Decay):
    """Half a cosine wave from the peak rate to its final share (Loshchilov and Hutter 2017, arXiv 1608.03983)."""

    @override
    def decay(self, progress: float) -> float:
        final = self.config.final
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@SCHEDULERS.register("inverse_sqrt")
class InverseSqrt(Scheduler):
    """By the inverse root of the steps so far, in units of the warmup's (Vaswani et al. 2017, arXiv 1706.03762, eq. 3).

    Without a warmup as if one of 10,000 steps had ended, as transformers has it.
    """

    @override
    def decay(self, progress: float) -> float:
        steps = progress * (self.total_steps - self.warmup_steps)
        return 1.0 / math.sqrt(1.0 + steps / (self.warmup_steps or 10_000))
