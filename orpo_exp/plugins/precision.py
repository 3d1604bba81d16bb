"""The types that numbers are computed in, and the scale that keeps float16's gradients in its range."""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum

import torch
from torch import Tensor, nn

# How often in a row a gradient may overflow before it counts as what it is.
MOST_OVERFLOWS = 20


class Precision(Enum):
    """The types of products and weights. bf16 and fp16 are autocast: weights, gradients and updates stay float32. With
    bf16_weights and fp16_weights the weights have that type as well, and the optimizer keeps float32 copies of them."""

    fp32 = "fp32"
    tf32 = "tf32"  # float32 whose products take 10 bits of the mantissa: NVIDIA GPUs from Ampere on
    bf16 = "bf16"
    fp16 = "fp16"
    bf16_weights = "bf16_weights"
    fp16_weights = "fp16_weights"

    @property
    def dtype(self) -> torch.dtype:
        """What products are cast to; float32: nothing is."""
        return {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}.get(self, torch.float32)

    @property
    def weights(self) -> torch.dtype | None:
        """The type that weights are brought to; None: they keep theirs."""
        return {Precision.bf16_weights: torch.bfloat16, Precision.fp16_weights: torch.float16}.get(self)

    @staticmethod
    def of_weights(name: str) -> "Precision":
        """The one that ColossalAI's plugins call fp32, fp16 or bf16: they cast the weights."""
        return Precision[name if name == "fp32" else f"{name}_weights"]

    @property
    def overflows(self) -> bool:
        """Whether gradients leave the type's range, so that the loss must be scaled."""
        return self in (Precision.fp16, Precision.fp16_weights)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """The context in which products are computed in `dtype` while weights stay what they are."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Inside, a model may be cast as a whole: afterwards its buffers have their former numbers and types.

    Rotary embeddings keep frequencies there. With 8 bits of mantissa their products with positions would be off by
    radians after a thousand tokens.
    """
    kept = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    yield
    for name, buffer in model.named_buffers():
        buffer.data = kept[name].to(buffer.device)


def squares(parts: Iterable[tuple[Tensor, int]]) -> float:
    """The sum of all squares, in float64; each tensor comes with the number of ranks that have it, by which its part is
    divided. The device is waited for once."""
    sums = [torch.linalg.vector_norm(of, dtype=torch.float64).square() / copies for of, copies in parts]
    return float(torch.stack(sums).sum()) if sums else 0.0


@contextmanager
def arithmetic_as_before() -> Iterator[None]:
    """Put back afterwards how torch computes products of float32, which tf32 changes, and with numbers next to zero,
    which a CPU's plugins have flushed."""
    before, flushed = torch.get_float32_matmul_precision(), not float(torch.tensor(1e-39) * 1.0)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_flush_denormal(flushed)


class LossScale:
    """What the loss is multiplied by before the backward pass, and the gradient divided by before the update.

    It is 1 but for float16, where it is halved when a gradient overflows, whose step is then skipped, and doubled after
    `growth_interval` good ones (Micikevicius et al. 2018, arXiv 1710.03740). ColossalAI's optimizers ask such an object
    for what their gradients are to be divided by, clipping included.

    overflows: steps that were skipped so far; in_a_row: the latest of them.
    """

    growth_interval = 2000

    def __init__(self, precision: Precision) -> None:
        self.moves = precision.overflows
        self.scale = 2.0**16 if self.moves else 1.0
        self.good, self.overflows, self.in_a_row = 0, 0, 0
        self._divisor = self.scale

    def judge(self, norm: float, max_norm: float | None) -> bool:
        """Take note of the true norm of a step's gradient: whether the step is to be made, clipped to `max_norm`."""
        if math.isfinite(norm):
            self._divisor = self.scale * max(1.0, (norm + 1e-6) / (math.inf if max_norm is None else max_norm))
            self.good, self.in_a_row = self.good + 1, 0
            if self.moves and self.good % self.growth_interval == 0:
                self.scale *= 2.0
        elif self.moves:
            self.scale, self.good = max(self.scale / 2.0, 1.0), 0
            self.overflows, self.in_a_row = self.overflows + 1, self.in_a_row + 1
        return math.isfinite(norm)

    def told(self, norm: float) -> float | None:
        """What a step returns: None where it was skipped, unless that has happened too often in a row."""
        return None if self.moves and 0 < self.in_a_row < MOST_OVERFLOWS else norm

    def metrics(self) -> dict[str, float]:
        """What is reported of it."""
        return {"overflows": float(self.overflows), "loss_scale": self.scale} if self.moves else {}

    def state(self) -> Tensor:
        """Everything that a resumed run needs, (4,) float64."""
        return torch.tensor([self.scale, self.good, self.overflows, self.in_a_row], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        """Go on from a `state`."""
        self.scale = float(state[0])
        self.good, self.overflows, self.in_a_row = (int(number) for number in state[1:])

    # what ColossalAI's optimizers ask for (amp/naive_amp/mixed_precision_mixin/base.py)

    def pre_backward(self, loss: Tensor) -> Tensor:
        """The loss as it is back-propagated; it has been scaled already."""
        return loss

    def pre_backward_by_grad(self, tensor: Tensor, grad: Tensor) -> Tensor:
        """A gradient that came from the next stage of a pipeline, scaled by it."""
        return grad

    def should_skip_step(self) -> bool:
        """A step that is to be skipped is never asked for."""
        return False

    def pre_zero_grad(self) -> None:
        """Nothing is to be done before gradients are cleared."""

    def get_grad_div_scale(self) -> float:
        """What every gradient is divided by before the update."""
        return self._divisor
