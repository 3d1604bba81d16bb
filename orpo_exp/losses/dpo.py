"""DPO and the losses that, like it, look at the difference of the two answers' scores."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from orpo_exp.losses.base import LOSSES, smoothed_logistic
from orpo_exp.losses.dpo_base import PairScores, ReferenceLoss
from orpo_exp.schema import setting


@LOSSES.register("dpo")
class DPO(ReferenceLoss):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

        -(1 - eps) log sigmoid(D) - eps log sigmoid(-D),  D = beta * (score(chosen) - score(rejected))

    With label smoothing eps > 0 it is conservative DPO (`loss=cdpo`; Mitchell 2023, "A note on DPO with noisy
    preferences").
    """

    @dataclass
    class Config(ReferenceLoss.Config):
        """label_smoothing: assumed share of flipped preferences."""

        label_smoothing: float = setting(0.0, ge=0, lt=0.5)

    config: Config

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        return smoothed_logistic(self.config.beta * scores.delta, self.config.label_smoothing)


@LOSSES.register("dpo_hinge")
class DPOHinge(ReferenceLoss):
    """max(0, 1 - D): the hinge of SLiC-HF (arXiv 2305.10425) on DPO's difference (RSO, arXiv 2309.06657).

    The margin asked for is 1 / beta.
    """

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        return torch.relu(1 - self.config.beta * scores.delta)


@LOSSES.register("dpo_robust")
class DPORobust(ReferenceLoss):
    """DPO unbiased under labels flipped at a known rate (Ray Chowdhury et al. 2024, arXiv 2403.00409).

        (-(1 - eps) log sigmoid(D) + eps log sigmoid(-D)) / (1 - 2 eps)

    Averaged over flips at the rate eps it is DPO's loss on clean labels. Unlike the smoothed loss of `cdpo` it has no
    minimum: D is driven up without end, at last with slope -eps / (1 - 2 eps).
    """

    @dataclass
    class Config(ReferenceLoss.Config):
        """label_smoothing: the share of flipped preferences, below one half."""

        label_smoothing: float = setting(0.1, ge=0, lt=0.5)

    config: Config

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        logits, flipped = self.config.beta * scores.delta, self.config.label_smoothing
        return (-(1 - flipped) * F.logsigmoid(logits) + flipped * F.logsigmoid(-logits)) / (1 - 2 * flipped)


@LOSSES.register("dpo_norm")
class DPONorm(ReferenceLoss):
    """Length-normalised DPO, of the scores per token (Lambert et al. 2024, Tulu 3, arXiv 2411.15124).

        -log sigmoid(beta * (score(chosen) / n(chosen) - score(rejected) / n(rejected)))

    Differences per token are small, and Tulu 3 takes beta = 5.
    """

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        return -F.logsigmoid(self.config.beta * scores.mean_delta)


@LOSSES.register("ipo")
class IPO(ReferenceLoss):
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17).

        (score(chosen) / n(chosen) - score(rejected) / n(rejected) - 1 / (2 beta))^2

    Scores are taken per token, as TRL does after its authors' advice; beta is the paper's tau. Exponents of the
    divergences are clamped at 40 here, for the difference is squared and its gradient must fit a float32.
    """

    exponent_clamp = 40.0

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        return (scores.mean_delta - 0.5 / self.config.beta).square()


@LOSSES.register("exo_pair")
class EXOPair(ReferenceLoss):
    """Efficient exact optimisation on pairs (Ji et al. 2024, arXiv 2402.00856, eq. 16).

    The reverse KL from the policy's preference (sigmoid(D), sigmoid(-D)) to the smoothed label (1 - eps, eps):

        sigmoid(D) (log sigmoid(D) - log(1 - eps)) + sigmoid(-D) (log sigmoid(-D) - log eps)
    """

    @dataclass
    class Config(ReferenceLoss.Config):
        """label_smoothing: eps, above 0 because its logarithm is taken."""

        label_smoothing: float = setting(1e-3, gt=0, lt=0.5)

    config: Config

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        logits = self.config.beta * scores.delta
        log_keep, log_flip = math.log1p(-self.config.label_smoothing), math.log(self.config.label_smoothing)
        keep = torch.sigmoid(logits) * (F.logsigmoid(logits) - log_keep)
        return keep + torch.sigmoid(-logits) * (F.logsigmoid(-logits) - log_flip)


@LOSSES.register("discopop")
class DiscoPOP(ReferenceLoss):
    """The loss that a language model discovered, log-ratio modulated (Lu et al. 2024, arXiv 2406.08414, eq. 5).

        (1 - m) * -log sigmoid(D) + m * exp(-D),  m = sigmoid(D / tau)

    m exp(-D) is taken as exp(log m - D), which for tau up to 1 is bounded by 1 and needs no clamp, while exp(-D) by
    itself overflows.
    """

    @dataclass
    class Config(ReferenceLoss.Config):
        """tau: temperature of the modulation; above 1 the exponential would outgrow it."""

        tau: float = setting(0.05, gt=0, le=1)

    config: Config

    @override
    def pair_losses(self, scores: PairScores) -> Tensor:
        logits = self.config.beta * scores.delta
        logistic = torch.sigmoid(-logits / self.config.tau) * -F.logsigmoid(logits)
        return logistic + torch.exp(F.logsigmoid(logits / self.config.tau) - logits)
