"""ORPO: odds-ratio preference optimisation, and the forms in which its implementations differ."""

from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from orpo_exp.losses.base import LOSSES, MEAN_LOGP, Loss, LossConfig, Scope, reward_metrics
from orpo_exp.losses.nll import NLLAverage, NLLTokens, nll_metric, nll_needs, nll_term
from orpo_exp.metrics import Direction, Metric
from orpo_exp.schema import setting
from orpo_exp.types import Counts, LossOutput, Need, PairLogps, TokenLogps


def log_odds(logp: Tensor, epsilon: float = 0.0) -> Tensor:
    """log(p / (1 + epsilon - p)) of p = exp(logp), elementwise, float64 in and out.

    Without epsilon the exact value and its slope grow without bound as p -> 1. From logp = -1e-6 on, the function
    continues along its tangent (slope 1e6), so that value and gradient stay finite and a rejected answer with p = 1 is
    still pushed down. An epsilon moves that point to -(1e-6 - epsilon); one of 1e-6 or more bounds the slope by itself,
    and the function is exact for all p <= 1.
    """
    x = logp.clamp(max=-max(1e-6 - epsilon, 0.0))
    # log(1 + epsilon - e^x): each form is exact where the other cancels (Maechler 2012)
    near_one, far = torch.log(epsilon - torch.expm1(x)), torch.log1p(epsilon - torch.exp(x))
    slope = (1.0 + epsilon) / (epsilon - torch.expm1(x.detach()))
    return x - torch.where(x > -0.6931471805599453, near_one, far) + slope * (logp - x)


class Odds(Enum):
    """Whose odds are compared: those of an answer's mean log-probability per token (the paper, TRL), or each token's
    own, of which the mean log odds are taken (ColossalChat)."""

    sequence = "sequence"
    token = "token"


class Average(Enum):
    """Where the odds ratio is taken: within each pair, and the penalty is a mean over pairs (the paper, TRL), or once,
    with all chosen tokens of the global batch as one answer and all rejected tokens as another (ColossalChat)."""

    pair = "pair"
    batch = "batch"


@LOSSES.register("orpo")
class ORPO(Loss):
    """Likelihood of the chosen answer plus a weighted odds-ratio penalty (Hong et al. 2024, arXiv 2403.07691, eq. 6-7).

        loss = nll_weight * NLL(chosen) + lam * -log sigmoid(log_odds(chosen) - log_odds(rejected))

    For the forms in which implementations differ see Odds, Average and `log_odds`. The metric `log_odds_ratio` is each
    pair's, whatever the average.
    """

    weight_field = "lam"
    reward = MEAN_LOGP

    @dataclass
    class Config(LossConfig):
        """The weights of the two terms, and the form of each.

        lam: of the odds-ratio term, 0 is supervised fine-tuning. nll_weight: of the likelihood term.
        epsilon: see `log_odds`. nll, nll_average: see `nll_term`.
        """

        lam: float = setting(0.1, ge=0)
        odds: Odds = Odds.sequence
        average: Average = Average.pair
        epsilon: float = setting(0.0, ge=0, le=1)
        nll_weight: float = setting(1.0, ge=0)
        nll: NLLTokens = NLLTokens.prompt_and_answer
        nll_average: NLLAverage = NLLAverage.token

    config: Config

    @property
    @override
    def scope(self) -> Scope:
        return Scope.batch if self.config.average is Average.batch else Scope.pair

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return nll_needs(self.config.nll)

    @property
    @override
    def terms(self) -> dict[str, Metric]:
        c = self.config
        odds = f"odds of each {c.odds.value}, epsilon={c.epsilon}"
        pooled = f"{odds}, one ratio for each {c.average.value}"
        return {
            "nll_loss": nll_metric(c.nll, c.nll_average),
            "odds_ratio_loss": Metric("odds-ratio loss", good=Direction.min, definition=pooled),
            "log_odds_ratio": Metric("log odds ratio", good=Direction.max, level=(0.0, ""), definition=odds),
        }

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        """The terms are without their weights."""
        log_odds_ratio = self.log_odds(policy.chosen) - self.log_odds(policy.rejected)  # (pairs,)
        if self.config.average is Average.pair:
            odds_ratio_loss = -F.logsigmoid(log_odds_ratio).sum() / counts.pairs
        else:
            assert len(log_odds_ratio) == counts.pairs  # `scope` asked for the whole batch
            pooled = self.log_odds(as_one_answer(policy.chosen)) - self.log_odds(as_one_answer(policy.rejected))
            odds_ratio_loss = -F.logsigmoid(pooled).sum()  # from (1,)
        nll_loss = nll_term(policy, counts, self.config.nll, self.config.nll_average)
        rewards = reward_metrics(policy.chosen.mean(), policy.rejected.mean(), policy)
        return LossOutput(
            loss=self.config.nll_weight * nll_loss + weight * odds_ratio_loss,
            terms={"nll_loss": nll_loss.detach(), "odds_ratio_loss": odds_ratio_loss.detach()},
            per_pair={"log_odds_ratio": log_odds_ratio.detach(), **rewards},
        )

    def log_odds(self, answers: TokenLogps) -> Tensor:
        """The log odds of each answer, (pairs,) float64."""
        if self.config.odds is Odds.sequence:
            return log_odds(answers.mean(), self.config.epsilon)
        return TokenLogps(log_odds(answers.values.double(), self.config.epsilon), answers.lengths).mean()


def as_one_answer(answers: TokenLogps) -> TokenLogps:
    """The tokens of several answers as those of a single one."""
    return TokenLogps(answers.values, answers.lengths.sum().reshape(1))
