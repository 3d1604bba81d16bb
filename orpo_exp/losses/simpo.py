"""SimPO and what is built on it: reference-free losses on the mean log-probability per token, with a target margin."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from orpo_exp.losses.base import LOSSES, MEAN_LOGP, Loss, LossConfig, smoothed_logistic
from orpo_exp.losses.nll import WITH_LIKELIHOOD, with_likelihood
from orpo_exp.schema import setting
from orpo_exp.types import Counts, LossOutput, PairLogps

# Above this exponent p^-alpha goes on along its tangent: the square of e^40 still fits float32, and so does a gradient
# norm.
LINEAR_ABOVE = 40.0


@LOSSES.register("simpo")
class SimPO(Loss):
    """Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734).

        loss = -log sigmoid(beta * (mean log p(chosen) - mean log p(rejected)) - gamma)

    gamma is the margin itself, as in the paper and as TRL's simpo_gamma; the paper's tables give gamma / beta. Label
    smoothing as in TRL.
    """

    terms = WITH_LIKELIHOOD
    reward = MEAN_LOGP
    reward_scale_field = "beta"

    @dataclass
    class Config(LossConfig):
        """beta: scale of the rewards; gamma: target margin; label_smoothing: assumed share of swapped labels."""

        beta: float = setting(2.0, gt=0)
        gamma: float = setting(0.5, ge=0)
        label_smoothing: float = setting(0.0, ge=0, lt=0.5)

    config: Config

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        """`weight` is that of the NLL: 0 in SimPO itself, where it is only reported."""
        chosen, rejected = self.config.beta * policy.chosen.mean(), self.config.beta * policy.rejected.mean()
        preference = smoothed_logistic(chosen - rejected - self.config.gamma, self.config.label_smoothing)  # (pairs,)
        return with_likelihood(preference, weight, chosen, rejected, policy, counts)


@LOSSES.register("cpo_simpo")
class CPOSimPO(SimPO):
    """CPO-SimPO: SimPO plus CPO's likelihood term (arXiv 2405.14734 and 2401.08417, joined by CPO's authors).

        loss = -log sigmoid(beta * (mean log p(chosen) - mean log p(rejected)) - gamma) + alpha * NLL(chosen)

    The NLL is a mean over answer tokens; the rest as in SimPO.
    """

    weight_field = "alpha"

    @dataclass
    class Config(SimPO.Config):
        """As SimPO's, and alpha: weight of the NLL."""

        alpha: float = setting(1.0, ge=0)

    config: Config


def shaped(logp: Tensor, alpha: float) -> Tensor:
    """(1 - p^-alpha) / alpha of p = exp(logp), elementwise, float64 in and out; log p, its limit, at alpha = 0.

    p^-alpha = exp(-alpha * logp) grows without bound for a positive alpha as p -> 0. Where its exponent exceeds 40 (at
    alpha = 0.25, a mean log-probability below -160), it continues along its tangent, so that value and gradient stay
    finite and monotonous.
    """
    if alpha == 0:
        return logp
    exponent = -alpha * logp
    x = exponent.clamp(max=LINEAR_ABOVE)
    # expm1, because 1 - exp(x) cancels for small alpha and for p -> 1
    return -(torch.expm1(x) + torch.exp(x.detach()) * (exponent - x)) / alpha


@LOSSES.register("alphapo")
class AlphaPO(Loss):
    """AlphaPO: SimPO with a bent reward (Gupta et al. 2025, arXiv 2501.03884), and optionally an NLL term.

        loss = -log sigmoid(r(chosen) - r(rejected) - gamma) + nll_weight * NLL(chosen)
        r = beta * (1 - p^-alpha) / alpha, p = exp(mean log p per token)

    alpha = 0 is SimPO. Rewards are r. For the clamp of p^-alpha see `shaped`; TRL has none and computes p^-alpha by way
    of p, which is 0 in float32 below a mean log-probability of about -103.
    """

    terms = WITH_LIKELIHOOD
    reward_scale_field = "beta"

    @dataclass
    class Config(SimPO.Config):
        """As SimPO's, alpha: exponent that bends the reward, nll_weight: weight of the NLL."""

        alpha: float = setting(0.25)
        nll_weight: float = setting(0.0, ge=0)

    config: Config

    @property
    @override
    def reward(self) -> str:
        alpha = self.config.alpha
        return f"(1 - p^-alpha) / alpha, alpha={alpha}, p = exp({MEAN_LOGP})" if alpha else MEAN_LOGP

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        beta, alpha = self.config.beta, self.config.alpha
        chosen, rejected = (beta * shaped(answer.mean(), alpha) for answer in (policy.chosen, policy.rejected))
        preference = smoothed_logistic(chosen - rejected - self.config.gamma, self.config.label_smoothing)  # (pairs,)
        return with_likelihood(preference, self.config.nll_weight, chosen, rejected, policy, counts)
