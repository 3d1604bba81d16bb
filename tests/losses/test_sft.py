import pytest
import torch
from support import span

from orpo_exp.losses import Scope
from orpo_exp.losses.base import counts_of
from orpo_exp.losses.nll import NLLAverage, NLLTokens
from orpo_exp.losses.orpo import ORPO
from orpo_exp.losses.sft import SFT
from orpo_exp.types import LossOutput, Need, PairLogps

CHOSEN = ([-0.1, -0.5, -2.0], [-1.5, -0.3])
REJECTED = ([-1.0, -0.2, -3.0, -0.7], [-0.4, -0.6, -0.8, -0.1, -0.9])
PROMPT = ([-1.0], [-0.5, -0.25])


def batch() -> PairLogps:
    return PairLogps(span(*CHOSEN), span(*REJECTED), span(*PROMPT))


def sft(logps: PairLogps, nll: NLLTokens, average: NLLAverage) -> LossOutput:
    return SFT(SFT.Config(nll=nll, nll_average=average))(logps, None, 0.0, counts_of(logps))


@pytest.mark.parametrize(
    ("nll", "average", "expected"),
    [
        (NLLTokens.answer, NLLAverage.token, (2.6 + 1.8) / 5),
        (NLLTokens.prompt_and_answer, NLLAverage.token, (2.6 + 1.8 + 1.75) / 8),
        (NLLTokens.answer, NLLAverage.sequence, (2.6 / 3 + 1.8 / 2) / 2),
        (NLLTokens.prompt_and_answer, NLLAverage.sequence, (3.6 / 4 + 2.55 / 4) / 2),
    ],
)
def test_what_the_likelihood_covers_and_weighs(nll, average, expected):
    out = sft(batch(), nll, average)
    assert out.loss.item() == pytest.approx(expected, rel=1e-14)
    assert out.terms["nll_loss"].item() == out.loss.item()


@pytest.mark.parametrize(
    ("average", "expected"),
    [(NLLAverage.token, [-1 / 5] * 5), (NLLAverage.sequence, [-1 / 6] * 3 + [-1 / 4] * 2)],
)
def test_gradient_is_one_over_what_is_averaged(average, expected):
    logps = batch()
    sft(logps, NLLTokens.answer, average).loss.backward()
    assert logps.chosen.values.grad.tolist() == pytest.approx(expected, rel=1e-14)
    assert logps.rejected.values.grad is None


@pytest.mark.parametrize("nll", NLLTokens)
@pytest.mark.parametrize("average", NLLAverage)
def test_orpo_with_lam_zero_is_the_same_to_the_last_bit(nll, average):
    here, there = batch(), batch()
    own = sft(here, nll, average)
    orpo = ORPO(ORPO.Config(lam=0.0, nll=nll, nll_average=average))(there, None, 0.0, counts_of(there))
    own.loss.backward()
    orpo.loss.backward()
    assert own.loss.item() == orpo.loss.item()
    assert torch.equal(here.chosen.values.grad, there.chosen.values.grad)
    assert there.rejected.values.grad.abs().max() == 0
    if nll is NLLTokens.prompt_and_answer:
        assert torch.equal(here.prompt.values.grad, there.prompt.values.grad)
    assert all(torch.equal(values, orpo.per_pair[name]) for name, values in own.per_pair.items())


@pytest.mark.parametrize("average", NLLAverage)
def test_micro_batches_add_up_and_an_empty_one_adds_nothing(average):
    parts = [PairLogps(*(span(s[i]) for s in (CHOSEN, REJECTED, PROMPT))) for i in range(2)]
    parts.append(PairLogps(span(), span(), span()))
    loss = SFT(SFT.Config(nll_average=average))
    whole = batch()
    outputs = [loss(part, None, 0.0, counts_of(whole)) for part in parts]
    for output in outputs:
        output.loss.backward()
    assert sum(o.loss.item() for o in outputs) == pytest.approx(
        loss(whole, None, 0.0, counts_of(whole)).loss.item(), rel=1e-14
    )
    assert outputs[-1].loss.item() == 0
    assert all(len(values) == 0 for values in outputs[-1].per_pair.values())


def test_what_it_declares_and_reports():
    loss = SFT(SFT.Config())
    assert (loss.weight_field, loss.weight, loss.scope) == (None, 0.0, Scope.pair)
    assert loss.needs == {Need.prompt_logps}
    assert SFT(SFT.Config(nll=NLLTokens.answer)).needs == frozenset()
    out = sft(batch(), NLLTokens.answer, NLLAverage.token)
    assert out.per_pair["rewards/chosen"].tolist() == pytest.approx([-2.6 / 3, -0.9])
    assert out.per_pair["rewards/accuracy"].tolist() == [1.0, 0.0]
    assert set(out.terms) == set(loss.terms)
