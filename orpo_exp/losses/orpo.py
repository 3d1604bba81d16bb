"""ORPO: odds-ratio preference optimisation."""

from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from orpo_exp.losses.base import LOSSES, Loss, LossConfig, reward_metrics
from orpo_exp.schema import setting
from orpo_exp.types import Counts, LossOutput, Need, PairLogps

# Above this mean log-probability the log odds go on along their tangent.
LINEAR_ABOVE = -1e-6


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logp), elementwise, float64 in and out.

    The exact value and its slope grow without bound as p -> 1. From logp = -1e-6 on, the function continues along its
    tangent (slope 1e6), so that value and gradient stay finite and a rejected answer with p = 1 is still pushed down.
    """
    x = logp.clamp(max=LINEAR_ABOVE)
    # log(1 - e^x): each form is exact where the other cancels (Maechler 2012)
    log_one_minus_p = torch.where(x > -0.6931471805599453, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
    slope = -1.0 / torch.expm1(x.detach())  # 1 / (1 - p)
    return x - log_one_minus_p + slope * (logp - x)


class NLLTokens(Enum):
    """Which tokens the likelihood term is taken over."""

    answer = "answer"
    prompt_and_answer = "prompt_and_answer"


@LOSSES.register("orpo")
class ORPO(Loss):
    """Likelihood of the chosen answer plus a weighted odds-ratio penalty (Hong et al. 2024, arXiv 2403.07691, eq. 6-7).

        loss = NLL(chosen) + lam * -log sigmoid(log_odds(chosen) - log_odds(rejected))

    The odds are those of the answer's mean log-probability per token. The NLL is a mean over all tokens of the global
    batch, the odds-ratio term a mean over its pairs. Rewards are mean log-probabilities per token.
    """

    weight_field = "lam"

    @dataclass
    class Config(LossConfig):
        """lam: weight of the odds-ratio term, 0 is supervised fine-tuning; nll: the tokens of the likelihood term."""

        lam: float = setting(0.1, ge=0)
        nll: NLLTokens = NLLTokens.prompt_and_answer

    config: Config

    @property
    def needs(self) -> frozenset[Need]:
        """The prompt's log-probabilities where the NLL covers it."""
        return frozenset({Need.prompt_logps} if self.config.nll is NLLTokens.prompt_and_answer else ())

    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        """See Loss. The terms are `nll_loss` and `odds_ratio_loss`, the latter without its weight."""
        chosen, rejected = policy.chosen.mean(), policy.rejected.mean()
        log_odds_ratio = log_odds(chosen) - log_odds(rejected)
        odds_ratio_loss = -F.logsigmoid(log_odds_ratio).sum() / counts.pairs

        nll, tokens = -policy.chosen.sum().sum(), counts.chosen_tokens
        if policy.prompt is not None and self.config.nll is NLLTokens.prompt_and_answer:
            nll, tokens = nll - policy.prompt.sum().sum(), tokens + counts.prompt_tokens
        nll_loss = nll / tokens

        return LossOutput(
            loss=nll_loss + weight * odds_ratio_loss,
            terms={"nll_loss": nll_loss.detach(), "odds_ratio_loss": odds_ratio_loss.detach()},
            per_pair={"log_odds_ratio": log_odds_ratio.detach(), **reward_metrics(chosen, rejected, policy)},
        )
