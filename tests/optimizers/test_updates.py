"""Each optimizer's update against its formula, computed here in float64 from the same float32 gradients.

Weights are of the order of 0.1: float32 rounds them by some 1e-8, so 1e-6 leaves no room for another formula.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from orpo_exp.optimizers.adafactor import Adafactor
from orpo_exp.optimizers.adamw import AdamW
from orpo_exp.optimizers.base import OptimizerFactory
from orpo_exp.optimizers.came import CAME
from orpo_exp.optimizers.cpu_adam import CPUAdam
from orpo_exp.optimizers.fused_adam import FusedAdam
from orpo_exp.optimizers.galore import GaLore, Projection
from orpo_exp.optimizers.hybrid_adam import HybridAdam
from orpo_exp.optimizers.lamb import Lamb
from orpo_exp.optimizers.sgd import SGD

SHAPES = ((6, 9), (9, 5), (7,))
STEPS = 6
LR, DECAY = 3e-3, 0.1

# (weight, gradients) -> the weight after each of them; weight and gradients float64
Formula = Callable[[Tensor, list[Tensor]], Iterator[Tensor]]


def close(factory: OptimizerFactory, formula: Formula) -> None:
    """Whether the optimizer makes the formula's updates, to 1e-6, on matrices and on a vector."""
    torch.manual_seed(0)
    device = "cuda" if factory.needs_gpu else "cpu"
    parameters = [nn.Parameter(0.1 * torch.randn(shape, device=device)) for shape in SHAPES]
    gradients = [[torch.randn(shape) * 10.0 ** (-step) for step in range(STEPS)] for shape in SHAPES]
    expected = [
        list(formula(parameter.detach().cpu().double(), [gradient.double() for gradient in of]))
        for parameter, of in zip(parameters, gradients, strict=True)
    ]
    optimizer = factory.make(parameters)
    for step in range(STEPS):
        for parameter, of in zip(parameters, gradients, strict=True):
            parameter.grad = of[step].to(device)
        optimizer.step()
        for parameter, of in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.detach().cpu().double(), of[step], rtol=1e-6, atol=1e-6)


def decay(weight: Tensor) -> float:
    return DECAY if weight.ndim > 1 else 0.0


@pytest.mark.parametrize("component", [AdamW, HybridAdam, CPUAdam, FusedAdam])
def test_adamw(component):
    """Loshchilov and Hutter 2019, algorithm 2, the decay before the step."""
    if (lacking := component.lacking()) is not None:
        pytest.skip(f"needs {lacking}")

    def formula(w: Tensor, gradients: list[Tensor]) -> Iterator[Tensor]:
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        for t, g in enumerate(gradients, start=1):
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            w = w - LR * decay(w) * w
            w = w - LR * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-5)
            yield w

    close(component(component.Config(lr=LR, weight_decay=DECAY, beta1=0.8, beta2=0.95, eps=1e-5)), formula)


def test_sgd_with_momentum():
    """Torch's: the decay is added to the gradient, and the rate multiplies the momentum."""

    def formula(w: Tensor, gradients: list[Tensor]) -> Iterator[Tensor]:
        m = torch.zeros_like(w)
        for g in gradients:
            m = 0.8 * m + g + decay(w) * w
            w = w - LR * m
            yield w

    close(SGD(SGD.Config(lr=LR, weight_decay=DECAY, momentum=0.8)), formula)


def test_lamb():
    """You et al. 2020, algorithm 2, with the identity as phi. It deviates in one thing: the means are not corrected for
    beginning at 0, so that in the first steps the decay weighs less beside Adam's direction."""

    def formula(w: Tensor, gradients: list[Tensor]) -> Iterator[Tensor]:
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        for g in gradients:
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            direction = m / (v.sqrt() + 1e-5) + decay(w) * w
            w = w - LR * w.norm() * direction / direction.norm()
            yield w

    close(Lamb(Lamb.Config(lr=LR, weight_decay=DECAY, beta1=0.8, beta2=0.95, eps=1e-5)), formula)


def root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


class Factored:
    """The running mean of a positive quantity, of a matrix by the sums of its rows and columns: R C / sum(R)."""

    def __init__(self, like: Tensor) -> None:
        self.rows, self.columns, self.all = (torch.zeros(()).double() for _ in range(3))
        self.matrix = like.ndim > 1

    def moved(self, x: Tensor, beta: float) -> Tensor:
        if not self.matrix:
            self.all = beta * self.all + (1 - beta) * x
            return self.all
        self.rows = beta * self.rows + (1 - beta) * x.sum(1)
        self.columns = beta * self.columns + (1 - beta) * x.sum(0)
        return torch.outer(self.rows, self.columns) / self.rows.sum()


@pytest.mark.parametrize("beta1", [None, 0.8])
def test_adafactor(beta1):
    """Shazeer and Stern 2018, algorithms 4 and 5, with a step size that is given. The decay and the mean of updates,
    which has the step size inside, are as ColossalAI adds them."""

    def formula(w: Tensor, gradients: list[Tensor]) -> Iterator[Tensor]:
        squares, m = Factored(w), torch.zeros_like(w)
        for t, g in enumerate(gradients, start=1):
            update = g / squares.moved(g**2 + 1e-6, 1 - t**-0.7).sqrt()
            update = LR * update / max(1.0, root_mean_square(update) / 0.9)
            m = update if beta1 is None else beta1 * m + (1 - beta1) * update
            w = w - LR * decay(w) * w - m
            yield w

    settings = {"beta1": beta1, "decay_rate": 0.7, "clip_threshold": 0.9, "eps": 1e-6}
    close(Adafactor(Adafactor.Config(lr=LR, weight_decay=DECAY, **settings)), formula)


def test_came():
    """Luo et al. 2023, algorithm 2. Vectors, of which it says nothing, move by the mean of their updates."""

    def formula(w: Tensor, gradients: list[Tensor]) -> Iterator[Tensor]:
        squares, instability, m = Factored(w), Factored(w), torch.zeros_like(w)
        for g in gradients:
            update = g / squares.moved(g**2 + 1e-6, 0.95).sqrt()
            update = update / max(1.0, root_mean_square(update) / 0.9)
            m = 0.8 * m + 0.2 * update
            unsteady = instability.moved((update - m) ** 2 + 1e-4, 0.99)
            w = w - LR * decay(w) * w - LR * (m / unsteady.sqrt() if w.ndim > 1 else m)
            yield w

    settings = {"beta1": 0.8, "beta2": 0.95, "beta3": 0.99, "clip_threshold": 0.9, "eps1": 1e-6, "eps2": 1e-4}
    close(CAME(CAME.Config(lr=LR, weight_decay=DECAY, **settings)), formula)


# which side of the (6, 9) and of the (9, 5) matrix the singular vectors are multiplied to
SIDES = {"std": "left right", "reverse_std": "right left", "left": "left left", "right": "right right"}


@pytest.mark.parametrize(("beta1", "gap"), [(0.8, STEPS), (0.0, 2)])
@pytest.mark.parametrize("kind", SIDES)
def test_galore(kind, beta1, gap):
    """Zhao et al. 2024, algorithm 2. It deviates in two things: eps is added before the correction for beginning at 0,
    and the decay is made after the step. Singular vectors have no sign of their own: where they are taken anew, a mean
    of squared gradients alone has a value."""

    def formula(w: Tensor, gradients: list[Tensor]) -> Iterator[Tensor]:
        m = v = torch.zeros(()).double()
        side = dict(zip(SHAPES, [*SIDES[kind].split(), None], strict=True))[tuple(w.shape)]
        to_left = to_right = torch.eye(1).double()
        for t, g in enumerate(gradients):
            if side is not None and t % gap == 0:
                left, _, right = torch.linalg.svd(g, full_matrices=False)
                to_left, to_right = left[:, :3].T, right[:3].T
            low = to_left @ g if side == "left" else g @ to_right if side == "right" else g
            m, v = beta1 * m + (1 - beta1) * low, 0.95 * v + 0.05 * low**2
            bias = (1 - 0.95 ** (t + 1)) ** 0.5 / (1 - beta1 ** (t + 1))
            step = bias * m / (v.sqrt() + 1e-5)
            if side is not None:
                step = 0.5 * (to_left.T @ step if side == "left" else step @ to_right.T)
            w = w - LR * step
            w = w - LR * decay(w) * w
            yield w

    settings = {"rank": 3, "update_proj_gap": gap, "scale": 0.5, "proj_type": Projection(kind)}
    close(GaLore(GaLore.Config(lr=LR, weight_decay=DECAY, beta1=beta1, beta2=0.95, eps=1e-5, **settings)), formula)
