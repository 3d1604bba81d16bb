"""Lambda schedules that look at the run: bounded controllers of the weight."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import override

from orpo_exp.losses.schedules import LAM_SCHEDULES, LamSchedule, LamScheduleConfig
from orpo_exp.schema import ConfigError, setting


class Adaptive(LamSchedule):
    """An integral controller of the weight's logarithm, one move per optimizer step:

        weight = start * factor,    factor <- clip(factor * exp(rate * clip(error, -1, 1)), min_factor, max_factor)

    Since the error is cut at 1, no single batch can move the weight by more than exp(rate); since the factor is cut at
    its bounds, it does not wind up beyond them while the target is out of reach. An error that is not a number is
    ignored. The weight depends on the metrics of the global batch alone, so that every rank finds the same.

    Raises ConfigError where the configured weight is 0: no multiple of 0 reaches a target.
    """

    @dataclass
    class Config(LamScheduleConfig):
        """rate: the most that the logarithm of the weight moves in one step.
        min_factor, max_factor: the weight stays between these multiples of its configured value.
        """

        rate: float = setting(0.05, gt=0, le=1)
        min_factor: float = setting(0.1, gt=0, le=1)
        max_factor: float = setting(10.0, ge=1, le=1e6)

    config: Config

    def __init__(self, config: Config, start: float, total_steps: int) -> None:
        super().__init__(config, start, total_steps)
        if not start > 0:
            raise ConfigError(
                "lam_schedule",
                f"an adaptive schedule that starts from a weight of {start:g}",
                "a weight above 0 to start from",
                "Set the loss's weight (loss.lam for ORPO) above 0, or choose lam_schedule=constant.",
            )
        self.factor = 1.0

    @override
    def weight(self, step: int) -> float:
        """The weight after all updates so far, whatever the step."""
        return self.start * self.factor

    @override
    def update(self, metrics: Mapping[str, float]) -> None:
        error = self.error(metrics)
        if not math.isnan(error):
            self.factor = self._bounded(self.factor * math.exp(self.config.rate * min(max(error, -1.0), 1.0)))

    @abstractmethod
    def error(self, metrics: Mapping[str, float]) -> float:
        """How far the target is away: above 0 where the weight should grow; nan where it cannot be told."""

    @override
    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor}

    @override
    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.factor = self._bounded(state["factor"])

    def _bounded(self, factor: float) -> float:
        return min(max(factor, self.config.min_factor), self.config.max_factor)


@LAM_SCHEDULES.register("target_margin")
class TargetMargin(Adaptive):
    """Holds the mean log odds ratio of the training pairs at a target: error = target - log_odds_ratio.

    Below the target the weight grows, above it shrinks. The likelihood term alone widens the margin too: where that
    exceeds the target, the weight ends at its lower bound. See Adaptive for the rule and its bounds.
    """

    needs_metrics = frozenset({"log_odds_ratio"})

    @dataclass
    class Config(Adaptive.Config):
        """target: the mean log odds ratio to hold. The rest: see Adaptive."""

        target: float = setting(1.0)

    config: Config

    @override
    def error(self, metrics: Mapping[str, float]) -> float:
        margin = metrics["log_odds_ratio"]
        return self.config.target - margin if math.isfinite(margin) else math.nan


@LAM_SCHEDULES.register("balanced")
class Balanced(Adaptive):
    """Holds the ratio of the two terms at a target: error = log(target / (weight * odds_ratio_loss / nll_loss)).

    The further preference is learned, the smaller the odds-ratio term becomes and the larger its weight. See Adaptive
    for the rule and its bounds. Where a term is 0 the weight moves by a full step, where both are it stays.
    """

    needs_metrics = frozenset({"nll_loss", "odds_ratio_loss"})

    @dataclass
    class Config(Adaptive.Config):
        """target: weight * odds_ratio_loss / nll_loss to hold. The rest: see Adaptive."""

        target: float = setting(0.25, gt=0)

    config: Config

    @override
    def error(self, metrics: Mapping[str, float]) -> float:
        wanted = self.config.target * metrics["nll_loss"]
        present = self.start * self.factor * metrics["odds_ratio_loss"]
        if not (math.isfinite(wanted) and math.isfinite(present)):
            return math.nan
        return _log(wanted) - _log(present)


def _log(value: float) -> float:
    """The logarithm, that of the least normal number for 0."""
    return math.log(max(value, 2.2250738585072014e-308))
