from dataclasses import replace

import pytest
from support import span

from orpo_exp import metrics
from orpo_exp.cli import check, compose
from orpo_exp.losses.base import LOSSES, LossConfig, Scope, counts_of
from orpo_exp.losses.combined import Combined
from orpo_exp.losses.cpo import CPO
from orpo_exp.losses.dpo import DPO, DPOHinge, DPONorm
from orpo_exp.losses.dpo_aot import AOT
from orpo_exp.losses.orpo import ORPO
from orpo_exp.losses.sft import SFT
from orpo_exp.schema import ConfigError
from orpo_exp.types import PairLogps

LOGPS = PairLogps(span([-0.1, -0.5], [-2.0]), span([-1.0], [-0.2, -3.0]), span([-1.0], [-0.5, -0.25]))


def test_it_is_the_weighted_sum_of_its_parts():
    parts = {"orpo": ORPO.Config(lam=0.3), "sft": SFT.Config()}
    both = Combined(Combined.Config(parts=parts, weights={"orpo": 2.0, "sft": 0.5}))
    out = both(LOGPS, None, 0.0, counts_of(LOGPS))
    orpo = ORPO(parts["orpo"])(LOGPS, None, 0.3, counts_of(LOGPS))
    sft = SFT(parts["sft"])(LOGPS, None, 0.0, counts_of(LOGPS))
    assert out.loss.item() == pytest.approx(2.0 * orpo.loss.item() + 0.5 * sft.loss.item(), rel=1e-14)
    assert out.terms["orpo/nll_loss"].item() == orpo.terms["nll_loss"].item()
    assert set(out.per_pair) == {"orpo/log_odds_ratio", *metrics.REWARDS, *metrics.LOGPS}


def test_what_parts_share_is_the_first_ones():
    parts = {"sums": CPO.Config(), "orpo": ORPO.Config()}
    sums, orpo = CPO(parts["sums"]), ORPO(parts["orpo"])
    both = Combined(Combined.Config(parts=parts, weights={"sums": 1.0, "orpo": 0.5}))
    out = both(LOGPS, None, 0.0, counts_of(LOGPS))
    assert out.per_pair["rewards/chosen"].tolist() == pytest.approx([-0.06, -0.2])
    assert both.metrics.keys() == {"loss", *out.terms, *out.per_pair}
    for name in ("rewards/chosen", "rewards/accuracy"):
        assert both.metrics[name] == sums.metrics[name] != orpo.metrics[name]
    assert both.metrics["orpo/nll_loss"] == replace(orpo.metrics["nll_loss"], label=both.metrics["orpo/nll_loss"].label)
    assert both.metrics["orpo/nll_loss"].label.startswith("orpo: ")
    assert both.metrics["sums/preference_loss"].definition == sums.definition


def test_it_compares_by_what_its_parts_are_and_not_by_their_names():
    def definition(**parts: LossConfig) -> str:
        loss = Combined(Combined.Config(parts=parts, weights=dict.fromkeys(parts, 0.5)))
        return loss.metrics["loss"].definition

    assert definition(a=DPO.Config(), b=SFT.Config()) == definition(c=DPO.Config(), d=SFT.Config())
    assert definition(a=DPOHinge.Config()) != definition(a=DPONorm.Config())  # the same settings
    assert definition(a=DPO.Config(beta=0.2)) != definition(a=DPO.Config())


def test_a_part_may_be_a_sum_itself():
    inner = Combined.Config(parts={"orpo": ORPO.Config()}, weights={"orpo": 1.0})
    both = Combined(Combined.Config(parts={"sum": inner}, weights={"sum": 1.0}))
    out = both(LOGPS, None, 0.0, counts_of(LOGPS))
    assert both.metrics.keys() == {"loss", *out.terms, *out.per_pair}
    assert "sum/orpo/log_odds_ratio" in out.per_pair


def test_it_declares_what_its_parts_declare():
    combined = Combined(
        Combined.Config(parts={"aot": AOT.Config(), "sft": SFT.Config()}, weights={"aot": 1.0, "sft": 1.0})
    )
    assert combined.needs_reference
    assert combined.scope is Scope.batch
    assert combined.needs == SFT(SFT.Config()).needs


def test_weights_must_fit_the_parts():
    with pytest.raises(ConfigError, match="a weight for each part"):
        Combined.Config(parts={"sft": SFT.Config()}, weights={"sft": 1.0, "dpo": 1.0})
    with pytest.raises(ConfigError, match=r"weights\.sft"):
        Combined.Config(parts={"sft": SFT.Config()}, weights={"sft": -1.0})


def test_it_composes_with_the_keys_of_its_parts():
    overrides = ["+experiment=quickstart", "loss=combined", "loss.parts.dpo.beta=0.2", "loss.weights.sft=0.5"]
    config = check(compose(overrides, None), overrides).config.loss
    loss = LOSSES.build(config)
    assert loss.config.parts["dpo"].beta == 0.2
    assert loss.config.weights == {"dpo": 1.0, "sft": 0.5}
    with pytest.raises(ConfigError, match="beta"):
        check(compose([*overrides, "loss.parts.dpo.beta=-1"], None), overrides)
