"""What a loss declares of its metrics: each is reported, each is told, and two are the same only where they compare."""

from pathlib import Path

import pytest
from support import order_of, span

from orpo_exp.losses import LOSSES, Loss
from orpo_exp.losses.base import LossConfig, counts_of, reward_metrics
from orpo_exp.metrics import LOGPS, REWARDS, Metric
from orpo_exp.types import LossOutput, PairLogps, TokenLogps

OPTIONS = sorted(file.stem for file in (Path(__file__).parents[2] / "conf" / "loss").glob("*.yaml"))


def loss_of(option: str, *settings: str) -> Loss:
    overrides = ("+experiment=quickstart", f"loss={option}", *(f"loss.{setting}" for setting in settings))
    return LOSSES.build(order_of(*overrides).config.loss)


def side() -> TokenLogps:
    plain = span([-0.1, -0.5, -2.0], [-1.5, -0.3])
    return TokenLogps(plain.values, plain.lengths, plain.values.detach())


def output(loss: Loss) -> LossOutput:
    policy, reference = (PairLogps(side(), side(), side(), side(), side()) for _ in range(2))
    return loss(policy, reference, loss.weight, counts_of(policy))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_loss_reports_what_it_declares(option):
    loss = loss_of(option)
    out = output(loss)
    assert loss.metrics.keys() == {"loss", *out.terms, *out.per_pair}
    assert all(metric.label for metric in loss.metrics.values())
    undefined = {name for name, metric in loss.metrics.items() if not metric.definition}
    assert undefined == set(LOGPS)  # these mean the same everywhere
    if hasattr(loss.config, "nll_weight"):
        loss.config.nll_weight = 0.7
        assert loss.metrics.keys() == {"loss", *output(loss).terms, *out.per_pair}


def test_accuracy_per_token_is_the_same_for_all_losses():
    """One pair each way, where sums would say otherwise."""
    policy = PairLogps(span([-0.5] * 9, [-2.0]), span([-1.0, -1.0], [-1.5] * 9))
    for rewards in ((policy.chosen.sum(), policy.rejected.sum()), (policy.rejected.mean(), policy.chosen.mean())):
        accuracy = reward_metrics(*rewards, policy)["logps/accuracy"]
        assert accuracy.tolist() == [1.0, 0.0]
        assert not accuracy.requires_grad


REWARD_NAMES = ("rewards/chosen", "rewards/rejected", "rewards/margin")


@pytest.mark.parametrize(
    ("one", "other", "same", "different"),
    [
        (["orpo"], ["orpo", "lam=0.5"], ["rewards/accuracy", *REWARD_NAMES, "nll_loss", "log_odds_ratio"], ["loss"]),
        (["orpo"], ["orpo_paper", "lam=0.1"], ["loss"], []),
        (["orpo"], ["dpo"], [], ["loss", "rewards/accuracy", *REWARD_NAMES]),
        (["orpo"], ["simpo"], ["rewards/accuracy"], REWARD_NAMES),
        (["orpo"], ["orpo_token"], ["nll_loss"], ["odds_ratio_loss", "log_odds_ratio"]),
        (["orpo"], ["orpo", "epsilon=0.1"], ["nll_loss"], ["odds_ratio_loss", "log_odds_ratio"]),
        (["orpo"], ["orpo", "average=batch"], ["log_odds_ratio"], ["odds_ratio_loss"]),
        (["orpo"], ["sft"], ["nll_loss", "rewards/accuracy", *REWARD_NAMES], ["loss"]),
        (["orpo"], ["orpo", "nll=answer"], ["log_odds_ratio"], ["nll_loss"]),
        (["orpo"], ["orpo", "nll_average=sequence"], ["log_odds_ratio"], ["nll_loss"]),
        (["orpo", "nll=answer"], ["cpo"], ["nll_loss"], ["rewards/accuracy"]),
        (["cpo"], ["dpo", "nll_weight=0.5"], ["nll_loss"], ["preference_loss"]),
        (["cpo"], ["slic"], ["rewards/accuracy", *REWARD_NAMES], ["preference_loss"]),
        (["dpo"], ["ipo"], ["rewards/accuracy", *REWARD_NAMES], ["loss", "preference_loss"]),
        (["dpo"], ["kto", "beta=0.2"], ["rewards/accuracy"], REWARD_NAMES),
        (["dpo"], ["cdpo"], ["rewards/accuracy"], ["loss", "preference_loss"]),
        (["dpo"], ["dpo", "ld_alpha=1"], ["rewards/accuracy"], []),
        (["dpo"], ["dpo", "ld_alpha=0.5"], [], ["rewards/accuracy", *REWARD_NAMES]),
        (["simpo"], ["alphapo"], [], ["rewards/accuracy"]),
        (["simpo"], ["alphapo", "alpha=0"], ["rewards/accuracy", *REWARD_NAMES], []),
        (["alphapo"], ["alphapo", "alpha=-1"], [], ["rewards/accuracy"]),
        (["kto"], ["kto", "beta=0.3"], ["kl"], ["preference_loss"]),
        (["combined"], ["dpo"], ["rewards/accuracy", *REWARD_NAMES], ["loss"]),
    ],
    ids=str,
)
def test_definitions_tell_what_can_be_compared(one, other, same, different):
    here, there = loss_of(*one).metrics, loss_of(*other).metrics
    for name in same:
        assert here[name].definition == there[name].definition, name
    for name in different:
        assert here[name].definition != there[name].definition, name


def test_definitions_are_read_by_people():
    metrics = loss_of("dpo", "beta=0.25", "ld_alpha=0.5").metrics
    reward = "log-ratio to the reference of the whole answer, tokens past the shorter answer's length times 0.5"
    assert metrics["rewards/margin"].definition == f"0.25 * {reward}"
    assert metrics["rewards/accuracy"].definition == reward
    assert metrics["loss"].definition.startswith("DPO(beta=0.25, f_divergence=reverse_kl, ")
    assert loss_of("sft").metrics["nll_loss"].definition == "prompt and answer, a mean over tokens"


def test_a_loss_that_says_nothing_compares_with_itself_alone():
    class Silent(Loss):
        terms = {"mine": Metric("mine")}  # noqa: RUF012
        __call__ = None

    metrics = Silent(LossConfig()).metrics
    assert metrics["mine"].definition == metrics["loss"].definition == "Silent()"
    assert all("Silent()" in metrics[name].definition for name in REWARDS)
