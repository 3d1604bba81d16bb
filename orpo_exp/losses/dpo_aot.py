"""Alignment by optimal transport: distributions of log-ratios over the global batch, compared by sorting."""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from orpo_exp.losses.base import LOSSES, Scope, smoothed_logistic
from orpo_exp.losses.dpo_base import AnswerwiseLoss, PairScores
from orpo_exp.schema import ConfigError, setting


class SortedLoss(AnswerwiseLoss):
    """What both share: ranks of the global batch are compared, and so all pairs are needed at once."""

    scope = Scope.batch

    @dataclass
    class Config(AnswerwiseLoss.Config):
        """label_smoothing: assumed share of flipped preferences."""

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

    config: Config

    def rank_losses(self, upper: Tensor, lower: Tensor) -> Tensor:
        """The i-th smallest value of `upper` should exceed that of `lower`; (pairs,) float64 in and out.

        The entries of the result are ranks of the batch, not pairs.
        """
        # equal values keep their order, so that the gradient is reproducible
        gaps = upper.sort(stable=True).values - lower.sort(stable=True).values
        return smoothed_logistic(self.config.beta * gaps, self.config.label_smoothing)


@LOSSES.register("aot")
class AOT(SortedLoss):
    """Distributional alignment of the pairs' margins (Melnyk et al. 2024, arXiv 2406.05882, paired).

        -(1 - eps) log sigmoid(beta d) - eps log sigmoid(-beta d)
        d = sort(s_c - s_r) - sort(reference s_c - reference s_r)

    The i-th smallest margin of the policy should exceed the i-th smallest of the reference.
    """

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        return self.rank_losses(scores.policy_margin, scores.reference_margin)


@LOSSES.register("aot_unpaired")
class AOTUnpaired(SortedLoss):
    """Distributional alignment of chosen against rejected answers (Melnyk et al. 2024, arXiv 2406.05882, unpaired).

    As AOT with d = sort(w_c) - sort(w_r): which chosen answer belongs to which rejected one plays no part.
    """

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        return self.rank_losses(scores.chosen_logratio, scores.rejected_logratio)
