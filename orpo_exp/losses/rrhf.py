"""RRHF: a rank loss on mean log-probabilities."""

from dataclasses import dataclass

import torch
from typing_extensions import override

from orpo_exp.losses.base import LOSSES, MEAN_LOGP, Loss, LossConfig
from orpo_exp.losses.nll import WITH_LIKELIHOOD, with_likelihood
from orpo_exp.schema import setting
from orpo_exp.types import Counts, LossOutput, PairLogps


@LOSSES.register("rrhf")
class RRHF(Loss):
    """Rank responses to align human feedback, for two answers (Yuan et al. 2023, arXiv 2304.05302).

        loss = max(0, mean log p(rejected) - mean log p(chosen) + margin) + nll_weight * NLL(chosen)

    The paper's loss has no margin and the NLL of the best answer with weight 1, summed over its tokens; here the NLL is
    a mean over the answer tokens of the global batch.
    """

    terms = WITH_LIKELIHOOD
    reward = MEAN_LOGP

    @dataclass
    class Config(LossConfig):
        """margin: by how much the chosen answer must lead, in nats per token; nll_weight: weight of the NLL."""

        margin: float = setting(0.0, ge=0)
        nll_weight: float = setting(1.0, ge=0)

    config: Config

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        chosen, rejected = policy.chosen.mean(), policy.rejected.mean()
        preference = torch.relu(rejected - chosen + self.config.margin)  # (pairs,)
        return with_likelihood(preference, self.config.nll_weight, chosen, rejected, policy, counts)
