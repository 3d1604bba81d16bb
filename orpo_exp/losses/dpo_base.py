"""What the losses with a reference model share: scores of the answers, settings, and the way from pairs to a loss."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from orpo_exp.losses.base import LOG_RATIO, PREFERENCE_LOSS, Loss, LossConfig
from orpo_exp.losses.nll import WITH_LIKELIHOOD, with_likelihood
from orpo_exp.metrics import Metric
from orpo_exp.schema import ConfigError, setting
from orpo_exp.types import Counts, LossOutput, Need, PairLogps, TokenLogps


class FDivergence(Enum):
    """The divergence between policy and reference that regularises the reward (f-DPO, arXiv 2309.16240)."""

    reverse_kl = "reverse_kl"
    forward_kl = "forward_kl"
    js = "js"
    alpha = "alpha"


def divergence_score(logratio: Tensor, kind: FDivergence, alpha: float, most: float) -> Tensor:
    """f'(t) at t = exp(logratio), elementwise, float64 in and out; the log-ratio itself for the reverse KL.

    Forward KL 1 - 1/t; Jensen-Shannon log(2t / (t + 1)); alpha (t^(alpha - 1) - 1) / (alpha - 1), which is the forward
    KL at alpha = 0 and the reverse KL at 1. The exponents of the forward KL and of alpha grow without bound: they are
    clamped from above at `most`, beyond which the score stays constant and has no gradient.
    """
    match kind:
        case FDivergence.forward_kl:
            return -torch.expm1((-logratio).clamp(max=most))
        case FDivergence.js:
            return math.log(2) + F.logsigmoid(logratio)
        case FDivergence.alpha if abs(alpha - 1) >= 1e-6:
            return torch.expm1(((alpha - 1) * logratio).clamp(max=most)) / (alpha - 1)
    return logratio


@dataclass(frozen=True)
class PairScores:
    """What the family's formulas are written in, (pairs,) float64 each.

    chosen_logratio, rejected_logratio: w = log policy - log reference of the whole answer.
    delta, mean_delta: difference of the answers' scores f'(exp w) under the chosen divergence; the same per token.
    policy_margin, reference_margin: log p(chosen) - log p(rejected) under each of the two.
    """

    chosen_logratio: Tensor
    rejected_logratio: Tensor
    delta: Tensor
    mean_delta: Tensor
    policy_margin: Tensor
    reference_margin: Tensor


class ReferenceLoss(Loss):
    """A loss of a pair's scores against a reference model; a subclass gives the formula in `pair_losses`.

        loss = mean over pairs of [wpo weight *] pair_losses(scores) [+ nll_weight * NLL(chosen)]

    The NLL is a mean over the chosen answers' tokens of the global batch, and is not weighed by WPO. Rewards are
    beta * log-ratio of the whole answer (under LD-DPO of its weighed tokens), whatever the divergence.
    """

    needs_reference = True
    reward_scale_field = "beta"
    exponent_clamp = 80.0  # of the divergences' exponentials: exp(80) is a float32 with room for a sum

    @dataclass
    class Config(LossConfig):
        """beta: strength of the tie to the reference; f_divergence, alpha_divergence: its kind, and the order of
        `alpha`; ld_alpha: weight of the tokens past the shorter answer's length (LD-DPO), null for none; wpo: weigh
        each pair by how probable the policy finds it (WPO); nll_weight: of the chosen answer's NLL in the loss (RPO).
        """

        beta: float = setting(0.1, gt=0)
        f_divergence: FDivergence = FDivergence.reverse_kl
        alpha_divergence: float = setting(0.5)
        ld_alpha: float | None = setting(None, ge=0, le=1)
        wpo: bool = False
        nll_weight: float = setting(0.0, ge=0)

    config: Config

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.log_squared} if self.config.wpo else ())

    @property
    @override
    def terms(self) -> dict[str, Metric]:
        return WITH_LIKELIHOOD if self.config.nll_weight else {"preference_loss": PREFERENCE_LOSS}

    @property
    @override
    def reward(self) -> str:
        tail = self.config.ld_alpha
        return LOG_RATIO if tail in (None, 1) else f"{LOG_RATIO}, tokens past the shorter answer's length times {tail}"

    @abstractmethod
    def pair_losses(self, scores: PairScores) -> Tensor:
        """The loss of each pair, (pairs,) float64."""

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        assert reference is not None, "the loss declares that it needs a reference"
        scores = self.scores(policy, reference)
        losses = self.pair_losses(scores)  # (pairs,)
        if self.config.wpo:
            losses = losses * wpo_weight(policy.chosen) * wpo_weight(policy.rejected)
        chosen, rejected = self.config.beta * scores.chosen_logratio, self.config.beta * scores.rejected_logratio
        return with_likelihood(losses, self.config.nll_weight or None, chosen, rejected, policy, counts)

    def scores(self, policy: PairLogps, reference: PairLogps) -> PairScores:
        """The pairs' scores under this loss's settings; the gradient flows to the policy."""
        chosen, rejected = self._log_probabilities(policy)
        with torch.no_grad():
            reference_chosen, reference_rejected = self._log_probabilities(reference)
        logratios = chosen - reference_chosen, rejected - reference_rejected
        kind, alpha = self.config.f_divergence, self.config.alpha_divergence
        score_c, score_r = (divergence_score(w, kind, alpha, self.exponent_clamp) for w in logratios)
        length_c, length_r = (s.lengths.clamp(min=1).to(chosen) for s in (policy.chosen, policy.rejected))
        deltas = score_c - score_r, score_c / length_c - score_r / length_r
        return PairScores(*logratios, *deltas, chosen - rejected, reference_chosen - reference_rejected)

    def _log_probabilities(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        if self.config.ld_alpha is None:
            return logps.chosen.sum(), logps.rejected.sum()
        shared = torch.minimum(logps.chosen.lengths, logps.rejected.lengths)
        chosen, rejected = (tail_weighed(s, shared, self.config.ld_alpha).sum() for s in (logps.chosen, logps.rejected))
        return chosen, rejected


class AnswerwiseLoss(ReferenceLoss):
    """A loss that looks at each answer's log-ratio by itself: the reverse KL only."""

    @dataclass
    class Config(ReferenceLoss.Config):
        """See ReferenceLoss."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.f_divergence is not FDivergence.reverse_kl:
                raise ConfigError(
                    "f_divergence",
                    self.f_divergence.name,
                    "reverse_kl: another divergence leaves an unknown constant per prompt in each answer's reward, "
                    "which cancels only where the loss takes the difference of the two answers' scores",
                    "Choose reverse_kl, or a loss of the difference: dpo, dpo_hinge, dpo_robust, dpo_norm, ipo, "
                    "exo_pair, discopop.",
                )


def tail_weighed(logps: TokenLogps, shared: Tensor, weight: float) -> TokenLogps:
    """The same log-probabilities in float64, those past each pair's first `shared` tokens times weight.

    shared: (pairs,) int64. LD-DPO, arXiv 2409.06411: what an answer has beyond the other's length counts for less.
    """
    starts = logps.lengths.cumsum(0) - logps.lengths
    place = torch.arange(int(logps.lengths.sum()), device=starts.device) - starts.repeat_interleave(logps.lengths)
    tail = (place >= shared.repeat_interleave(logps.lengths)).to(logps.values.device)  # (tokens,) bool
    values = logps.values.double()
    return TokenLogps(torch.where(tail, weight * values, values), logps.lengths)


def wpo_weight(logps: TokenLogps) -> Tensor:
    """How typical of the policy each answer is, (pairs,) float64 without gradient.

    exp(mean over tokens of (log p(token) - log sum_v p(v)^2)), WPO, arXiv 2406.11827, eq. 2: an answer as
    probable as the policy's own samples weighs about 1, whatever the policy's entropy.
    """
    assert logps.log_squared is not None, "the loss declares that it needs the summed squared probabilities"
    relative = logps.values.detach().double() - logps.log_squared.double()
    return TokenLogps(relative, logps.lengths).mean().exp()
