"""Every form of ORPO against plain Python: values by `math`'s formulas, gradients by complex steps through them."""

import cmath
import itertools
import math

import pytest
import torch
from support import span

from orpo_exp.cli import check, compose
from orpo_exp.losses import LOSSES, Scope
from orpo_exp.losses.base import counts_of
from orpo_exp.losses.nll import NLLAverage, NLLTokens
from orpo_exp.losses.orpo import ORPO, Average, Odds, log_odds
from orpo_exp.types import LossOutput, PairLogps

CHOSEN = [[-0.1, -0.5, -2.0], [-1.5, -0.3], [-0.7]]
REJECTED = [[-1.0, -0.2, -3.0, -0.7], [-0.4, -0.6, -0.8, -0.1, -0.9], [-0.01, -5.0]]
PROMPT = [[-1.0], [-0.5, -0.25], []]
FORMS = list(itertools.product(Odds, Average, (0.0, 1e-4)))
VARIANTS = list(itertools.product(Odds, Average, (0.0, 1e-4), NLLTokens, NLLAverage))
NAMED = ("orpo", "orpo_paper", "orpo_colossalchat", "orpo_token", "orpo_odds_only")


def spans(sides, pairs=slice(None)) -> PairLogps:
    return PairLogps(*(span(*side[pairs]) for side in sides))


def run(config: ORPO.Config, logps: PairLogps) -> LossOutput:
    return ORPO(config)(logps, None, config.lam, counts_of(logps))


def named(option: str) -> ORPO.Config:
    overrides = ["+experiment=quickstart", f"loss={option}"]
    return check(compose(overrides, None), overrides).config.loss


def plain(config: ORPO.Config, chosen, rejected, prompt):
    """The loss as one would write it on paper, of lists of real or complex numbers."""

    def odds_of_one(x):
        return x - cmath.log(1 + config.epsilon - cmath.exp(x))

    def odds(tokens):
        if config.odds is Odds.token:
            return sum(odds_of_one(x) for x in tokens) / len(tokens)
        return odds_of_one(sum(tokens) / len(tokens))

    if config.average is Average.pair:
        ratios = [odds(c) - odds(r) for c, r in zip(chosen, rejected, strict=True)]
    else:
        ratios = [odds([x for c in chosen for x in c]) - odds([x for r in rejected for x in r])]
    penalty = sum(cmath.log(1 + cmath.exp(-ratio)) for ratio in ratios) / len(ratios)

    sequences = chosen
    if config.nll is NLLTokens.prompt_and_answer:
        sequences = [p + c for p, c in zip(prompt, chosen, strict=True)]
    if config.nll_average is NLLAverage.token:
        tokens = [x for sequence in sequences for x in sequence]
        nll = -sum(tokens) / len(tokens)
    else:
        nll = -sum(sum(sequence) / len(sequence) for sequence in sequences) / len(sequences)
    return config.nll_weight * nll + config.lam * penalty


@pytest.mark.parametrize("pairs", [slice(0, 1), slice(0, 3)], ids=["one_pair", "three_pairs"])
@pytest.mark.parametrize(("odds", "average", "epsilon", "nll", "nll_average"), VARIANTS)
def test_value_and_gradient_against_plain_python(odds, average, epsilon, nll, nll_average, pairs):
    config = ORPO.Config(
        lam=0.7, odds=odds, average=average, epsilon=epsilon, nll_weight=0.9, nll=nll, nll_average=nll_average
    )
    sides = [side[pairs] for side in (CHOSEN, REJECTED, PROMPT)]
    logps = spans(sides)
    loss = run(config, logps).loss
    loss.backward()
    assert loss.item() == pytest.approx(plain(config, *sides).real, rel=1e-12)
    for number, part in enumerate((logps.chosen, logps.rejected, logps.prompt)):
        expected = []
        for i, j in [(i, j) for i, row in enumerate(sides[number]) for j in range(len(row))]:
            moved = [[list(row) for row in side] for side in sides]
            moved[number][i][j] += 1e-30j  # f(x + ih) = f(x) + i h f'(x): exact, for nothing is subtracted
            expected.append(plain(config, *moved).imag / 1e-30)
        got = part.values.grad.tolist() if part.values.grad is not None else [0.0] * len(expected)
        assert got == pytest.approx(expected, rel=1e-11, abs=1e-300)


def test_golden_token_odds():
    out = run(ORPO.Config(odds=Odds.token), spans((CHOSEN, REJECTED, PROMPT), slice(0, 1)))
    assert out.per_pair["log_odds_ratio"].item() == pytest.approx(0.7758137, abs=1e-7)
    assert out.terms["odds_ratio_loss"].item() == pytest.approx(0.3786618, abs=1e-7)


def test_golden_colossalchat():
    """The scalar of coati's OddsRatioLoss in float32 would be -0.6626; the pooled ratio itself is .0621056."""
    loss = ORPO(named("orpo_colossalchat"))
    logps = spans((CHOSEN, REJECTED, PROMPT), slice(0, 2))
    ratio = 0.0621056
    out = loss(logps, None, loss.weight, counts_of(logps))
    assert out.terms["odds_ratio_loss"].item() == pytest.approx(math.log1p(math.exp(-ratio)), abs=1e-7)
    assert out.terms["odds_ratio_loss"].item() == pytest.approx(0.6626, abs=5e-5)
    assert out.terms["nll_loss"].item() == pytest.approx((2.6 + 1.8 + 1.75) / 8)
    assert out.loss.item() == pytest.approx(6.15 / 8 + 0.1 * out.terms["odds_ratio_loss"].item())
    assert out.per_pair["log_odds_ratio"].shape == (2,)


def test_what_the_named_variants_are():
    assert named("orpo") == ORPO.Config()
    assert named("orpo_paper") == ORPO.Config(lam=1.0)
    assert named("orpo_token") == ORPO.Config(odds=Odds.token)
    assert named("orpo_colossalchat") == ORPO.Config(odds=Odds.token, average=Average.batch, epsilon=1e-4)
    assert named("orpo_odds_only") == ORPO.Config(lam=1.0, nll_weight=0.0, nll=NLLTokens.answer)
    assert [LOSSES.build(named(name)).scope is Scope.batch for name in NAMED] == [False, False, True, False, False]


def test_odds_only_is_the_odds_ratio_term():
    config = named("orpo_odds_only")
    logps = spans((CHOSEN, REJECTED, PROMPT))
    out = run(config, logps)
    assert out.loss.item() == config.lam * out.terms["odds_ratio_loss"].item()
    assert out.terms["nll_loss"].item() == pytest.approx(5.1 / 6)


@pytest.mark.parametrize(("odds", "average", "epsilon"), FORMS)
def test_swapping_chosen_and_rejected_negates_the_log_odds_ratio(odds, average, epsilon):
    config = ORPO.Config(odds=odds, average=average, epsilon=epsilon, nll=NLLTokens.answer)
    for pairs in (slice(0, 1), slice(0, 3)):
        there = run(config, spans((CHOSEN, REJECTED, PROMPT), pairs))
        back = run(config, spans((REJECTED, CHOSEN, PROMPT), pairs))
        torch.testing.assert_close(there.per_pair["log_odds_ratio"], -back.per_pair["log_odds_ratio"], rtol=0, atol=0)
        if average is Average.batch or pairs == slice(0, 1):  # one ratio z: sigmoid(z) + sigmoid(-z) = 1
            losses = (there.terms["odds_ratio_loss"].item(), back.terms["odds_ratio_loss"].item())
            assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("odds", "average", "epsilon"), [*FORMS, (Odds.token, Average.pair, 5e-7)])
def test_value_and_gradient_stay_finite(odds, average, epsilon, dtype):
    config = ORPO.Config(lam=1.0, odds=odds, average=average, epsilon=epsilon, nll=NLLTokens.answer)
    for chosen, rejected in itertools.product([0.0, -1e-45, -1e-10, -1e-7, -1e-3, -200.0], repeat=2):
        # the second token is an ordinary one: per token, the first alone is extreme
        sides = [span([logp, *more]) for logp, more in ((chosen, []), (rejected, [-0.5] * (odds is Odds.token)))]
        logps = PairLogps(*(type(s)(s.values.detach().to(dtype).requires_grad_(), s.lengths) for s in sides))
        out = run(config, logps)
        out.loss.backward()
        assert math.isfinite(out.loss.item())
        for side, sign in ((logps.chosen, -1), (logps.rejected, 1)):
            assert torch.isfinite(side.values.grad).all()
            assert (sign * side.values.grad >= 0).all()


@pytest.mark.parametrize("epsilon", [0.0, 5e-7, 1e-6, 1e-4, 0.5])
def test_log_odds_with_epsilon(epsilon):
    bend = -max(1e-6 - epsilon, 0.0)
    for a in (bend, 2 * bend - 1e-7, -1e-5, -0.1, -0.69, -0.7, -3.0, -200.0):
        gap = epsilon - math.expm1(a) if a > -0.6931 else 1 + epsilon - math.exp(a)
        x = torch.tensor([a], dtype=torch.float64, requires_grad=True)
        value = log_odds(x, epsilon)
        value.backward()
        assert value.item() == pytest.approx(a - math.log(gap), rel=1e-12, abs=1e-14)
        assert x.grad.item() == pytest.approx((1 + epsilon) / gap, rel=1e-12)
    above = torch.tensor([0.0, 1e-7], dtype=torch.float64)  # float32 log-probabilities can end above 0
    slope = (1 + epsilon) / (epsilon - math.expm1(bend))
    expected = [bend - math.log(epsilon - math.expm1(bend)) + slope * (a - bend) for a in (0.0, 1e-7)]
    assert log_odds(above, epsilon).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("odds", "epsilon", "nll_average"), itertools.product(Odds, (0.0, 1e-4), NLLAverage))
def test_micro_batches_add_up_to_the_batch(odds, epsilon, nll_average):
    sides = (CHOSEN, REJECTED, PROMPT)
    loss = ORPO(ORPO.Config(odds=odds, epsilon=epsilon, nll_average=nll_average))
    whole = spans(sides)
    counts = counts_of(whole)
    parts = [spans(sides, slice(0, 2)), spans(sides, slice(2, 3)), PairLogps(span(), span(), span())]
    outputs = [loss(part, None, 0.1, counts) for part in parts]
    for output in [*outputs, together := loss(whole, None, 0.1, counts)]:
        output.loss.backward()
    for name in ("nll_loss", "odds_ratio_loss"):
        added = sum(output.terms[name].item() for output in outputs)
        assert added == pytest.approx(together.terms[name].item(), rel=1e-14)
    for name in ("chosen", "rejected", "prompt"):
        grads = torch.cat([getattr(part, name).values.grad for part in parts])
        torch.testing.assert_close(grads, getattr(whole, name).values.grad, rtol=1e-14, atol=0)
    assert outputs[-1].loss.item() == 0


def test_pooling_sees_the_whole_batch_or_refuses():
    sides = (CHOSEN, REJECTED, PROMPT)
    loss = ORPO(ORPO.Config(average=Average.batch))
    with pytest.raises(AssertionError):
        loss(spans(sides, slice(0, 1)), None, 0.1, counts_of(spans(sides)))
