"""What a loss is: a pure function from log-probabilities to terms, and what it declares about itself."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from orpo_exp.metrics import LOGPS, LOSS, REWARDS, Direction, Metric
from orpo_exp.registry import Registry
from orpo_exp.schema import Settings, flat, numeric_content
from orpo_exp.types import Counts, LossOutput, Need, PairLogps

# What rewards are made of: losses that say the same can be compared by their rewards' order
MEAN_LOGP = "mean log-probability per token"
SUMMED_LOGP = "log-probability of the whole answer"
LOG_RATIO = "log-ratio to the reference of the whole answer"

PREFERENCE_LOSS = Metric("preference loss", good=Direction.min)  # what it is, the loss and its settings say


class Scope(Enum):
    """How far a loss looks. `pair`: its terms are sums over pairs and tokens. `batch`: it needs all pairs of the global
    batch at once; they are then scored twice, first without gradient."""

    pair = "pair"
    batch = "batch"


@dataclass
class LossConfig(Settings):
    """Base of every loss's configuration."""


class Loss(ABC):
    """A preference objective.

    Class attributes and properties tell what must be known of it, and nobody asks for its name:
    needs_reference: the loss compares with a reference policy.
    weight_field: the configuration field that a lambda schedule drives, or None.
    reward_scale_field: the configuration field that its rewards are scaled by, or None.
    """

    Config: ClassVar[type[LossConfig]] = LossConfig
    needs_reference: ClassVar[bool] = False
    weight_field: ClassVar[str | None] = None
    reward_scale_field: ClassVar[str | None] = None

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    @property
    def scope(self) -> Scope:
        """How far the loss looks."""
        return Scope.pair

    @property
    def needs(self) -> frozenset[Need]:
        """What must be computed beyond the answers' log-probabilities."""
        return frozenset()

    @property
    def gradient_needs(self) -> frozenset[Need]:
        """Those of `needs` that the loss has a gradient by; with scope `batch` the second pass computes no others."""
        return self.needs

    @property
    def weight(self) -> float:
        """The starting value of the field that the lambda schedule drives; 0 where there is none."""
        return float(getattr(self.config, self.weight_field)) if self.weight_field else 0.0

    @property
    def terms(self) -> dict[str, Metric]:
        """Its own terms and metrics of pairs, by name. One without a definition depends on all of the settings."""
        return {}

    @property
    def reward(self) -> str:
        """What its rewards are before they are scaled, in words."""
        return f"reward of {self.definition}"

    @property
    def definition(self) -> str:
        """The loss with all its settings, as text."""
        settings = flat(numeric_content(self.config))
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in settings.items())})"

    @property
    def metrics(self) -> dict[str, Metric]:
        """All that it reports, each with its definition. Log-probabilities have none: they are the same for all."""
        scale = float(getattr(self.config, self.reward_scale_field)) if self.reward_scale_field else 1.0
        rewards = {name: replace(metric, definition=f"{scale} * {self.reward}") for name, metric in REWARDS.items()}
        # a positive scale changes no order
        rewards["rewards/accuracy"] = replace(REWARDS["rewards/accuracy"], definition=self.reward)
        own = {"loss": LOSS, **self.terms}
        own = {name: replace(metric, definition=metric.definition or self.definition) for name, metric in own.items()}
        return own | rewards | LOGPS

    @abstractmethod
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        """The share of the given pairs in the loss of the global batch.

        policy, reference: log-probabilities of the pairs, the reference's without gradient or None.
        weight: value of `weight_field` at this step.
        counts: what the global batch holds; every term is already divided by it.
        """


def counts_of(logps: PairLogps) -> Counts:
    """The counts of a batch that these log-probabilities are the whole of."""
    return Counts(
        pairs=len(logps.chosen.lengths),
        chosen_tokens=int(logps.chosen.lengths.sum()),
        rejected_tokens=int(logps.rejected.lengths.sum()),
        prompt_tokens=int(logps.prompt.lengths.sum()) if logps.prompt else 0,
    )


def smoothed_logistic(margin: Tensor, smoothing: float) -> Tensor:
    """-(1 - smoothing) log sigmoid(margin) - smoothing log sigmoid(-margin), elementwise.

    The cross-entropy of the preference sigmoid(margin) with a label that is wrong with probability `smoothing`.
    """
    if smoothing == 0:
        return -F.logsigmoid(margin)
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def reward_metrics(chosen: Tensor, rejected: Tensor, policy: PairLogps) -> dict[str, Tensor]:
    """The metrics every loss reports per pair, from its rewards, (pairs,) each; all (pairs,) float64, no gradient."""
    chosen, rejected = chosen.detach(), rejected.detach()
    chosen_logp, rejected_logp = policy.chosen.mean().detach(), policy.rejected.mean().detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margin": chosen - rejected,
        "rewards/accuracy": (chosen > rejected).to(torch.float64),
        "logps/chosen": chosen_logp,
        "logps/rejected": rejected_logp,
        "logps/accuracy": (chosen_logp > rejected_logp).to(torch.float64),
    }


LOSSES: Registry[Loss] = Registry("loss")
