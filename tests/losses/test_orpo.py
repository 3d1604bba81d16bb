import math

import pytest
import torch
from support import span

from orpo_exp.losses.base import counts_of
from orpo_exp.losses.nll import NLLTokens
from orpo_exp.losses.orpo import ORPO, log_odds
from orpo_exp.types import LossOutput, PairLogps

CHOSEN, REJECTED = [-0.1, -0.5, -2.0], [-1.0, -0.2, -3.0, -0.7]
CHOSEN_2, REJECTED_2 = [-1.5, -0.3], [-0.4, -0.6, -0.8, -0.1, -0.9]


def orpo(logps: PairLogps, lam: float = 0.1, nll: NLLTokens = NLLTokens.answer) -> LossOutput:
    return ORPO(ORPO.Config(lam=lam, nll=nll))(logps, None, lam, counts_of(logps))


def test_golden_pair():
    out = orpo(PairLogps(span(CHOSEN), span(REJECTED)))
    assert out.per_pair["log_odds_ratio"].item() == pytest.approx(0.5558679, abs=1e-7)
    assert out.terms["odds_ratio_loss"].item() == pytest.approx(0.4533496, abs=1e-7)
    assert out.terms["nll_loss"].item() == pytest.approx(2.6 / 3, rel=1e-12)
    assert out.loss.item() == pytest.approx(2.6 / 3 + 0.1 * 0.4533496, abs=1e-7)


def test_golden_mean_over_two_pairs():
    out = orpo(PairLogps(span(CHOSEN, CHOSEN_2), span(REJECTED, REJECTED_2)))
    assert out.per_pair["log_odds_ratio"][1].item() == pytest.approx(-0.6650, abs=5e-5)
    assert out.per_pair["log_odds_ratio"].mean().item() == pytest.approx(-0.0545412, abs=1e-7)
    assert out.terms["odds_ratio_loss"].item() == pytest.approx(0.7666263, abs=1e-7)


def test_nll_is_a_mean_over_tokens_not_over_pairs():
    prompt = span([-1.0], [-0.5, -0.25])
    logps = PairLogps(span(CHOSEN, CHOSEN_2), span(REJECTED, REJECTED_2), prompt)
    assert orpo(logps, nll=NLLTokens.prompt_and_answer).terms["nll_loss"].item() == pytest.approx(
        (2.6 + 1.8 + 1.75) / 8
    )
    assert orpo(logps, nll=NLLTokens.answer).terms["nll_loss"].item() == pytest.approx((2.6 + 1.8) / 5)


def test_gradient_is_the_hand_derived_one():
    """dL/dl_t = -1/n_tokens + lam * -sigmoid(-r) * (+-1/n) / (1 - p); r: log odds ratio, p: exp of the mean."""
    chosen, rejected, lam = span(CHOSEN), span(REJECTED), 0.7
    orpo(PairLogps(chosen, rejected), lam=lam).loss.backward()
    a_c, a_r = sum(CHOSEN) / 3, sum(REJECTED) / 4
    ratio = (a_c - math.log1p(-math.exp(a_c))) - (a_r - math.log1p(-math.exp(a_r)))
    pull = 1 / (1 + math.exp(ratio))
    expected_c = -1 / 3 - lam * pull / (1 - math.exp(a_c)) / 3
    expected_r = lam * pull / (1 - math.exp(a_r)) / 4
    assert chosen.values.grad is not None
    assert rejected.values.grad is not None
    torch.testing.assert_close(
        chosen.values.grad, torch.full((3,), expected_c, dtype=torch.float64), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        rejected.values.grad, torch.full((4,), expected_r, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_swapping_chosen_and_rejected_negates_the_log_odds_ratio():
    there = orpo(PairLogps(span(CHOSEN, CHOSEN_2), span(REJECTED, REJECTED_2)))
    back = orpo(PairLogps(span(REJECTED, REJECTED_2), span(CHOSEN, CHOSEN_2)))
    torch.testing.assert_close(there.per_pair["log_odds_ratio"], -back.per_pair["log_odds_ratio"], rtol=0, atol=0)


def test_lam_zero_is_supervised_fine_tuning():
    rejected = span(REJECTED)
    out = orpo(PairLogps(span(CHOSEN), rejected), lam=0.0)
    out.loss.backward()
    assert out.loss.item() == out.terms["nll_loss"].item()
    assert rejected.values.grad is not None
    assert rejected.values.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chosen", [0.0, -1e-45, -1e-10, -1e-7, -1e-3, -200.0])
@pytest.mark.parametrize("rejected", [0.0, -1e-45, -1e-10, -1e-7, -1e-3, -200.0])
def test_value_and_gradient_stay_finite(chosen, rejected, dtype):
    logps = PairLogps(
        *(type(s)(s.values.detach().to(dtype).requires_grad_(), s.lengths) for s in (span([chosen]), span([rejected])))
    )
    out = orpo(logps, lam=1.0)
    out.loss.backward()
    assert math.isfinite(out.loss.item())
    for side, sign in ((logps.chosen, -1), (logps.rejected, 1)):
        assert side.values.grad is not None
        assert torch.isfinite(side.values.grad).all()
        assert (sign * side.values.grad >= 0).all()  # the chosen answer is pushed up, the rejected one down


def test_a_certain_rejected_answer_is_still_pushed_down():
    rejected = span([0.0])
    orpo(PairLogps(span([-1.0]), rejected)).loss.backward()
    assert rejected.values.grad is not None
    assert rejected.values.grad.item() == pytest.approx(0.1 * 1e6, rel=1e-5)


@pytest.mark.parametrize("a", [-1e-6, -1e-5, -0.1, -0.69, -0.7, -3.0, -200.0])
def test_log_odds_against_plain_mathematics(a):
    exact = a - (math.log(-math.expm1(a)) if a > -0.6931 else math.log1p(-math.exp(a)))
    assert log_odds(torch.tensor([a], dtype=torch.float64)).item() == pytest.approx(exact, rel=1e-14)


def test_log_odds_continue_along_their_tangent():
    at, above = torch.tensor([-1e-6, -0.5e-6], dtype=torch.float64)
    slope = 1 / -math.expm1(-1e-6)
    assert (log_odds(above) - log_odds(at)).item() == pytest.approx(0.5e-6 * slope, rel=1e-9)


def test_an_empty_micro_batch_adds_nothing():
    nothing = PairLogps(span(), span(), span())
    whole = counts_of(PairLogps(span(CHOSEN), span(REJECTED)))
    out = ORPO(ORPO.Config())(nothing, None, 0.1, whole)
    out.loss.backward()
    assert out.loss.item() == 0
    assert all(len(values) == 0 for values in out.per_pair.values())


def test_micro_batches_add_up_to_the_batch():
    whole = PairLogps(span(CHOSEN, CHOSEN_2), span(REJECTED, REJECTED_2))
    parts = [PairLogps(span(CHOSEN), span(REJECTED)), PairLogps(span(CHOSEN_2), span(REJECTED_2))]
    loss = ORPO(ORPO.Config(nll=NLLTokens.answer))
    added = sum(loss(part, None, 0.1, counts_of(whole)).loss.item() for part in parts)
    assert added == pytest.approx(loss(whole, None, 0.1, counts_of(whole)).loss.item(), rel=1e-14)
