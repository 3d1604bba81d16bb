"""KTO: each answer is desirable or undesirable by itself, against a reference point shared by the batch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from orpo_exp.losses.base import LOG_RATIO, LOSSES, PREFERENCE_LOSS, Loss, LossConfig, Scope, reward_metrics
from orpo_exp.metrics import Metric
from orpo_exp.schema import setting
from orpo_exp.types import Counts, LossOutput, Need, PairLogps, TokenLogps


def log_ratio(policy: TokenLogps | None, reference: TokenLogps | None) -> Tensor:
    """log p_policy(answer) - log p_reference(answer), (pairs,) float64."""
    assert policy is not None, "the loss declares what it needs of the policy"
    assert reference is not None, "the reference is scored on the policy's spans"
    return policy.sum() - reference.sum()


@LOSSES.register("kto")
class KTO(Loss):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306), chosen answers as the desirable ones.

        w = log p_policy(answer) - log p_reference(answer)
        KL = max(0, mean of w over the mismatched answers), without gradient
        loss = mean over answers of desirable_weight * (1 - sigmoid(beta * (w - KL)))    for a chosen answer,
                                    undesirable_weight * (1 - sigmoid(beta * (KL - w)))  for a rejected one

    The mean is over all answers, two to a pair, and not divided by the weights, as in TRL. KL is the mean over both
    mismatched answers of every pair of the global batch; TRL takes mismatched answers within a device's batch. A global
    batch of one pair has no mismatched answers worth the name.
    """

    needs_reference = True
    # for the KL, which is that of the whole global batch and has no gradient
    scope = Scope.batch
    needs = frozenset({Need.mismatched})
    gradient_needs = frozenset()
    terms: ClassVar[dict[str, Metric]] = {
        "preference_loss": PREFERENCE_LOSS,
        "kl": Metric("KL to the reference", "nats", definition="mean log-ratio of mismatched answers, at least 0"),
    }
    reward = LOG_RATIO
    reward_scale_field = "beta"

    @dataclass
    class Config(LossConfig):
        """beta: inverse temperature; desirable_weight, undesirable_weight: of chosen and of rejected answers."""

        beta: float = setting(0.1, gt=0)
        desirable_weight: float = setting(1.0, ge=0)
        undesirable_weight: float = setting(1.0, ge=0)

    config: Config

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        assert reference is not None, "KTO declares that it needs a reference"
        beta = self.config.beta
        chosen = beta * log_ratio(policy.chosen, reference.chosen)  # (pairs,)
        rejected = beta * log_ratio(policy.rejected, reference.rejected)
        with torch.no_grad():
            mismatched = log_ratio(policy.mismatched_chosen, reference.mismatched_chosen).sum()
            mismatched += log_ratio(policy.mismatched_rejected, reference.mismatched_rejected).sum()
            kl = (mismatched / (2 * counts.pairs)).clamp(min=0)  # (), of the global batch

        # 1 - sigmoid(x) = sigmoid(-x), which does not cancel
        desirable = self.config.desirable_weight * torch.sigmoid(beta * kl - chosen)
        undesirable = self.config.undesirable_weight * torch.sigmoid(rejected - beta * kl)
        loss = (desirable + undesirable).sum() / (2 * counts.pairs)
        return LossOutput(
            loss=loss,
            terms={"preference_loss": loss.detach()},
            per_pair={"kl": kl.expand(len(chosen)), **reward_metrics(chosen, rejected, policy)},
        )
