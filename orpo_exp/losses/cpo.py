"""CPO and SLiC-HF: reference-free losses on the log-probability of whole answers, with a likelihood term."""

from dataclasses import dataclass

import torch
from typing_extensions import override

from orpo_exp.losses.base import LOSSES, SUMMED_LOGP, Loss, LossConfig, smoothed_logistic
from orpo_exp.losses.nll import WITH_LIKELIHOOD, with_likelihood
from orpo_exp.schema import setting
from orpo_exp.types import Counts, LossOutput, PairLogps


@LOSSES.register("cpo")
class CPO(Loss):
    """Contrastive preference optimisation (Xu et al. 2024, arXiv 2401.08417): DPO with a uniform reference, plus NLL.

        loss = -log sigmoid(beta * (log p(chosen) - log p(rejected))) + alpha * NLL(chosen)

    Log-probabilities are sums over the answer. The paper's likelihood term is that of whole answers with alpha = 1;
    here, as in TRL, it is a mean over answer tokens. Label smoothing as in TRL.
    """

    weight_field = "alpha"
    terms = WITH_LIKELIHOOD
    reward = SUMMED_LOGP
    reward_scale_field = "beta"

    @dataclass
    class Config(LossConfig):
        """beta: inverse temperature; label_smoothing: assumed share of swapped labels; alpha: weight of the NLL."""

        beta: float = setting(0.1, gt=0)
        label_smoothing: float = setting(0.0, ge=0, lt=0.5)
        alpha: float = setting(1.0, ge=0)

    config: Config

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        chosen, rejected = self.config.beta * policy.chosen.sum(), self.config.beta * policy.rejected.sum()
        preference = smoothed_logistic(chosen - rejected, self.config.label_smoothing)  # (pairs,)
        return with_likelihood(preference, weight, chosen, rejected, policy, counts)


@LOSSES.register("slic")
class SLiC(Loss):
    """SLiC-HF: a hinge on the log-probabilities of whole answers, plus NLL (Zhao et al. 2023, arXiv 2305.10425).

        loss = max(0, 1 - beta * (log p(chosen) - log p(rejected))) + alpha * NLL(chosen)

    The paper's margin delta is 1 / beta here, and the loss beta times the paper's. Its regularisation is the likelihood
    of a separate target; here, as in TRL, it is that of the chosen answer, a mean over its tokens.
    """

    terms = WITH_LIKELIHOOD
    reward = SUMMED_LOGP
    reward_scale_field = "beta"

    @dataclass
    class Config(LossConfig):
        """beta: 1 / margin in nats; alpha: weight of the NLL."""

        beta: float = setting(0.1, gt=0)
        alpha: float = setting(1.0, ge=0)

    config: Config

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        chosen, rejected = self.config.beta * policy.chosen.sum(), self.config.beta * policy.rejected.sum()
        preference = torch.relu(1 - (chosen - rejected))  # (pairs,)
        return with_likelihood(preference, self.config.alpha, chosen, rejected, policy, counts)
