"""Supervised fine-tuning on the chosen answers."""

from dataclasses import dataclass

from typing_extensions import override

from orpo_exp.losses.base import LOSSES, MEAN_LOGP, Loss, LossConfig, reward_metrics
from orpo_exp.losses.nll import NLLAverage, NLLTokens, nll_metric, nll_needs, nll_term
from orpo_exp.metrics import Metric
from orpo_exp.types import Counts, LossOutput, Need, PairLogps


@LOSSES.register("sft")
class SFT(Loss):
    """Likelihood of the chosen answer alone: ORPO with lam = 0, to the last bit.

        loss = NLL(chosen)

    Rejected answers are scored for the metrics only.
    """

    reward = MEAN_LOGP

    @dataclass
    class Config(LossConfig):
        """nll: the tokens of the likelihood; nll_average: what weighs the same in it."""

        nll: NLLTokens = NLLTokens.prompt_and_answer
        nll_average: NLLAverage = NLLAverage.token

    config: Config

    @property
    @override
    def terms(self) -> dict[str, Metric]:
        return {"nll_loss": nll_metric(self.config.nll, self.config.nll_average)}

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return nll_needs(self.config.nll)

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        nll_loss = nll_term(policy, counts, self.config.nll, self.config.nll_average)
        rewards = reward_metrics(policy.chosen.mean(), policy.rejected.mean(), policy)
        return LossOutput(nll_loss, {"nll_loss": nll_loss.detach()}, rewards)
