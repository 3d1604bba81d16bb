"""The likelihood term that several losses share, and its sum with a preference loss."""

from enum import Enum

from torch import Tensor

from orpo_exp.losses.base import PREFERENCE_LOSS, reward_metrics
from orpo_exp.metrics import Direction, Metric
from orpo_exp.types import Counts, LossOutput, Need, PairLogps


class NLLTokens(Enum):
    """Which tokens the likelihood term is taken over."""

    answer = "answer"
    prompt_and_answer = "prompt_and_answer"


class NLLAverage(Enum):
    """What weighs the same in the likelihood term.

    token: each token of the global batch, so that long answers weigh more.
    sequence: each pair, by the mean over its own tokens; a pair without a scored token counts 0.
    """

    token = "token"
    sequence = "sequence"


def nll_needs(tokens: NLLTokens) -> frozenset[Need]:
    """What the likelihood term asks to be computed: the prompt's log-probabilities where it covers the prompt."""
    return frozenset({Need.prompt_logps} if tokens is NLLTokens.prompt_and_answer else ())


def nll_term(policy: PairLogps, counts: Counts, tokens: NLLTokens, average: NLLAverage = NLLAverage.token) -> Tensor:
    """Negative log-likelihood of the chosen answers, () float64: the given pairs' share of the global batch's."""
    total, lengths, of_all = policy.chosen.sum(), policy.chosen.lengths, counts.chosen_tokens  # (pairs,), (pairs,), int
    if tokens is NLLTokens.prompt_and_answer:
        assert policy.prompt is not None  # `nll_needs` asked for it
        total, lengths = total + policy.prompt.sum(), lengths + policy.prompt.lengths
        of_all += counts.prompt_tokens
    if average is NLLAverage.token:
        return -total.sum() / of_all
    return -(total / lengths.clamp(min=1).to(total.device)).sum() / counts.pairs


def nll_metric(tokens: NLLTokens, average: NLLAverage = NLLAverage.token) -> Metric:
    """The declaration of `nll_term`."""
    definition = f"{tokens.value.replace('_', ' ')}, a mean over {average.value}s"
    return Metric("negative log-likelihood of the chosen answers", "nats per token", Direction.min, None, definition)


WITH_LIKELIHOOD = {"preference_loss": PREFERENCE_LOSS, "nll_loss": nll_metric(NLLTokens.answer)}


def with_likelihood(
    preference: Tensor, nll_weight: float | None, chosen: Tensor, rejected: Tensor, policy: PairLogps, counts: Counts
) -> LossOutput:
    """The mean of a preference loss over pairs plus the weighted NLL of the chosen answers.

    preference: (pairs,) with gradient, the preference loss of each pair; chosen, rejected: (pairs,) rewards.
    The NLL is a mean over the answer tokens of the global batch; it is reported even where its weight is 0, and not
    computed where that is None. Terms: WITH_LIKELIHOOD's, `nll_loss` without its weight.
    """
    loss = preference.sum() / counts.pairs
    terms = {"preference_loss": loss.detach()}
    if nll_weight is not None:
        nll_loss = nll_term(policy, counts, NLLTokens.answer)
        loss, terms["nll_loss"] = loss + nll_weight * nll_loss, nll_loss.detach()
    return LossOutput(loss, terms, reward_metrics(chosen, rejected, policy))
