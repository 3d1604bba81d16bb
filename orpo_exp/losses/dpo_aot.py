"""Alignment by optimal transport: distributions of log-ratios over the global batch, compared by sorting."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from orpo_exp.losses.base import LOSSES, Scope, smoothed_logistic
from orpo_exp.losses.dpo_base import AnswerwiseConfig, PairScores, ReferenceLoss
from orpo_exp.schema import ConfigError, setting


@dataclass
class AOTConfig(AnswerwiseConfig):
    """label_smoothing: assumed share of flipped preferences; the rest as in ReferenceLossConfig."""

    label_smoothing: float = setting(0.0, ge=0, lt=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wpo:
            raise ConfigError(
                "wpo",
                True,
                "false: sorting takes the pairs apart, so that a weight has no pair to weigh",
                "Set wpo=false, or choose another loss.",
            )


def sorted_up(values: Tensor) -> Tensor:
    """The values in ascending order; equal ones keep theirs, so that the gradient is reproducible."""
    return values.sort(stable=True).values


class SortedLoss(ReferenceLoss):
    """What both share: ranks of the global batch are compared, and so all pairs are needed at once."""

    Config = AOTConfig
    config: AOTConfig

    @property
    @override
    def scope(self) -> Scope:
        return Scope.batch

    @abstractmethod
    def gaps(self, scores: PairScores) -> Tensor:
        """How far the i-th smallest value lies above the one it should exceed, (pairs,) float64."""

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        """The entries are ranks of the batch, not pairs."""
        return smoothed_logistic(self.config.beta * self.gaps(scores), self.config.label_smoothing)


@LOSSES.register("aot")
class AOT(SortedLoss):
    """Distributional alignment of the pairs' margins (Melnyk et al. 2024, arXiv 2406.05882, paired).

        -(1 - eps) log sigmoid(beta d) - eps log sigmoid(-beta d)
        d = sort(s_c - s_r) - sort(reference s_c - reference s_r)

    The i-th smallest margin of the policy should exceed the i-th smallest of the reference. The sort is over the global
    batch: scope `batch`.
    """

    @override
    def gaps(self, scores: PairScores) -> Tensor:
        """Margins of the policy over those of the reference."""
        return sorted_up(scores.policy_margin) - sorted_up(scores.reference_margin)


@LOSSES.register("aot_unpaired")
class AOTUnpaired(SortedLoss):
    """Distributional alignment of chosen against rejected answers (Melnyk et al. 2024, arXiv 2406.05882, unpaired).

    As AOT with d = sort(w_c) - sort(w_r): which chosen answer belongs to which rejected one plays no part.
    """

    @override
    def gaps(self, scores: PairScores) -> Tensor:
        """Log-ratios of the chosen answers over those of the rejected ones."""
        return sorted_up(scores.chosen_logratio) - sorted_up(scores.rejected_logratio)
