"""What is particular to SimPO, CPO-SimPO and AlphaPO; what holds for the whole family is in test_cpo_family.py."""

import math

import pytest
import torch
from support import span

from orpo_exp.losses import Loss
from orpo_exp.losses.base import counts_of
from orpo_exp.losses.simpo import LINEAR_ABOVE, AlphaPO, CPOSimPO, SimPO, shaped
from orpo_exp.types import PairLogps

LOGPS = PairLogps(
    span([-0.1, -0.5, -2.0], [-1.5, -0.3]), span([-1.0, -0.2, -3.0, -0.7], [-0.4, -0.6, -0.8, -0.1, -0.9])
)


def value(loss: Loss) -> float:
    return loss(LOGPS, None, loss.weight, counts_of(LOGPS)).loss.item()


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_gamma_is_a_margin_outside_of_beta():
    """-log sigmoid(beta * 0 - gamma) for two equal answers, whatever beta is."""
    same = PairLogps(span([-1.0, -2.0]), span([-1.5]))
    for beta in (0.5, 7.0):
        out = SimPO(SimPO.Config(beta=beta, gamma=1.2))(same, None, 0.0, counts_of(same))
        assert out.loss.item() == pytest.approx(math.log1p(math.exp(1.2)), rel=1e-14)


def test_cpo_simpo_without_likelihood_and_alphapo_without_alpha_are_simpo():
    simpo = value(SimPO(SimPO.Config()))
    assert value(CPOSimPO(CPOSimPO.Config(alpha=0.0))) == simpo
    assert value(AlphaPO(AlphaPO.Config(alpha=0.0))) == simpo
    for alpha in (1e-7, 1e-12, 1e-100, -1e-7):  # no jump on the way there
        assert value(AlphaPO(AlphaPO.Config(alpha=alpha))) == pytest.approx(simpo, rel=1e-6)


@pytest.mark.parametrize("alpha", [-2.0, -0.25, -1e-8, 1e-8, 0.25, 2.0])
@pytest.mark.parametrize("logp", [-1e-10, -1e-3, -0.7, -3.0, -19.0])
def test_shaped_against_plain_mathematics(alpha, logp):
    given = tensor(logp)
    out = shaped(given, alpha)
    out.backward()
    assert out.item() == pytest.approx(-math.expm1(-alpha * logp) / alpha, rel=1e-14)
    assert given.grad.item() == pytest.approx(math.exp(-alpha * logp), rel=1e-14)


def test_shaped_is_zero_for_certainty():
    for alpha in (-1.0, 0.0, 0.25):
        assert shaped(tensor(0.0), alpha).item() == 0


def test_shaped_continues_along_its_tangent():
    """At alpha = 0.25 the exponent 40 is a mean log-probability of -160; the slope there is e^40."""
    at, above, far = (tensor(logp) for logp in (-160.0, -164.0, -1000.0))
    slope = math.exp(LINEAR_ABOVE)
    assert (shaped(at, 0.25) - shaped(above, 0.25)).item() == pytest.approx(4 * slope, rel=1e-12)
    shaped(far, 0.25).backward()
    assert far.grad.item() == pytest.approx(slope, rel=1e-12)
