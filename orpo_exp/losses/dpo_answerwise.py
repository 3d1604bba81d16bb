"""Losses that judge each answer's log-ratio by itself: the chosen one's level matters, not only the difference.

u = beta * w is an answer's reward, w its log-ratio. Only the reverse KL makes sense here (AnswerwiseLoss).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from orpo_exp.losses.base import LOSSES
from orpo_exp.losses.dpo_base import AnswerwiseLoss, PairScores


@LOSSES.register("nca_pair")
class NCAPair(AnswerwiseLoss):
    """Noise-contrastive alignment on pairs (Chen et al. 2024, arXiv 2402.05369).

    -log sigmoid(u_c) - log sigmoid(-u_c) / 2 - log sigmoid(-u_r) / 2
    """

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        chosen, rejected = self.config.beta * scores.chosen_logratio, self.config.beta * scores.rejected_logratio
        return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


@LOSSES.register("bco_pair")
class BCOPair(AnswerwiseLoss):
    """Binary classifier optimisation on pairs (Jung et al. 2024, arXiv 2404.04656).

        -log sigmoid(u_c) - log sigmoid(-u_r)

    The paper subtracts from each reward a shift, the running mean of all rewards. As in TRL's `bco_pair` there is none:
    it would make the loss depend on the batches before.
    """

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        beta = self.config.beta
        return -F.logsigmoid(beta * scores.chosen_logratio) - F.logsigmoid(-beta * scores.rejected_logratio)


@LOSSES.register("sppo_hard")
class SPPOHard(AnswerwiseLoss):
    """Self-play preference optimisation with hard labels (Wu et al. 2024, arXiv 2405.00675, eq. 4.7).

        (w_c - 1 / (2 beta))^2 + (w_r + 1 / (2 beta))^2

    The paper's probability of winning is 1 for the chosen and 0 for the rejected answer; 1 / beta is its eta.
    """

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        goal = 0.5 / self.config.beta
        return (scores.chosen_logratio - goal).square() + (scores.rejected_logratio + goal).square()


@LOSSES.register("apo_zero")
class APOZero(AnswerwiseLoss):
    """Anchored preference optimisation, zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7).

        1 - sigmoid(u_c) + sigmoid(u_r)

    Chosen answers up, rejected ones down: for chosen answers better than the model's own.
    """

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        beta = self.config.beta
        return torch.sigmoid(-beta * scores.chosen_logratio) + torch.sigmoid(beta * scores.rejected_logratio)


@LOSSES.register("apo_down")
class APODown(AnswerwiseLoss):
    """Anchored preference optimisation, down (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8).

        sigmoid(u_c) + 1 - sigmoid(u_c - u_r)

    Both answers down, the rejected one further: for a model that is better than the chosen answers.
    """

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        beta, chosen, rejected = self.config.beta, scores.chosen_logratio, scores.rejected_logratio
        return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))
