"""RRHF by hand; what holds for the whole family is in test_cpo_family.py."""

import pytest
from support import span

from orpo_exp.losses.base import counts_of
from orpo_exp.losses.rrhf import RRHF
from orpo_exp.types import PairLogps

# means -0.5 and -1.5: right way round by 1; means -2 and -1.25: wrong way round by 0.75
LOGPS = ([-0.25, -0.75], [-2.0]), ([-1.5, -1.0, -2.0], [-1.0, -1.5])


def rrhf(margin: float, nll_weight: float):
    logps = PairLogps(*(span(*answers) for answers in LOGPS))
    return logps, RRHF(RRHF.Config(margin, nll_weight))(logps, None, 0.0, counts_of(logps))


def test_only_pairs_out_of_order_are_punished():
    logps, out = rrhf(margin=0.0, nll_weight=0.0)
    assert out.loss.item() == pytest.approx(0.75 / 2, rel=1e-14)
    out.loss.backward()
    assert logps.chosen.values.grad.tolist() == [0, 0, -0.5]  # 1 / (2 pairs * 1 token)
    assert logps.rejected.values.grad.tolist() == [0, 0, 0, 0.25, 0.25]


def test_a_margin_asks_for_more_than_the_order():
    _, out = rrhf(margin=1.2, nll_weight=0.0)
    assert out.terms["preference_loss"].item() == pytest.approx((0.2 + 1.95) / 2, rel=1e-14)


def test_likelihood_is_a_mean_over_answer_tokens():
    _, out = rrhf(margin=0.0, nll_weight=0.5)
    assert out.terms["nll_loss"].item() == pytest.approx(3.0 / 3, rel=1e-14)
    assert out.loss.item() == pytest.approx(0.375 + 0.5, rel=1e-14)


def test_rewards_are_mean_log_probabilities():
    _, out = rrhf(margin=0.0, nll_weight=1.0)
    assert out.per_pair["rewards/chosen"].tolist() == [-0.5, -2.0]
    assert out.per_pair["rewards/accuracy"].tolist() == [1.0, 0.0]
