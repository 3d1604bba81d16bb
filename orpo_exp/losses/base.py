"""What a loss is: a pure function from log-probabilities to terms, and what it declares about itself."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from orpo_exp.registry import Registry
from orpo_exp.schema import Settings
from orpo_exp.types import Counts, LossOutput, Need, PairLogps


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

    Class attributes tell the loop what it must know, and it never asks for the loss's name:
    needs_reference: the loss compares with a reference policy.
    weight_field: the configuration field that a lambda schedule drives, or None.
    reports: metrics and terms that an adaptive lambda schedule may read.
    """

    Config: ClassVar[type[LossConfig]] = LossConfig
    needs_reference: ClassVar[bool] = False
    weight_field: ClassVar[str | None] = None
    reports: ClassVar[frozenset[str]] = frozenset()

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

    @abstractmethod
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        """The share of the given pairs in the loss of the global batch.

        policy, reference: log-probabilities of the pairs, the reference's without gradient or None.
        weight: value of `weight_field` at this step.
        counts: what the global batch holds; every term is already divided by it.
        """


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
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margin": chosen - rejected,
        "rewards/accuracy": (chosen > rejected).to(torch.float64),
        "logps/chosen": policy.chosen.mean().detach(),
        "logps/rejected": policy.rejected.mean().detach(),
    }


LOSSES: Registry[Loss] = Registry("loss")
