"""Linear layers whose weights, which nobody trains, lie in 8 or 4 bits, by bitsandbytes."""

from abc import abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class QuantizedLinear(nn.Linear):
    """A linear layer that holds each of its weights in a few bits, and computes with the numbers that these stand for.

    Products have the type that autocast says, or else that of their inputs, which are not rounded: the numbers are the
    same in training and scoring, and whatever shares a batch. What it holds are bytes, also where they make up float32
    numbers, so that no cast of a model touches them.

    linear: the layer in whose place it is put. filled: whether that holds its weights yet; if not, nothing is written.
    """

    def __init__(self, linear: nn.Linear, filled: bool) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would make a weight
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        weight = linear.weight.detach()
        self.dtype = weight.dtype
        for name, part in self.quantize(weight if filled else weight.to("meta")).items():
            held = part if filled else torch.empty_like(part, device="cpu")
            self.register_parameter(name, nn.Parameter(held.view(torch.uint8), requires_grad=False))

    @abstractmethod
    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """What stands for a weight, (out, in), by the names of this layer's parameters."""

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The numbers that it stands for, (out, in), rounded to that type."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # nobody sets it
        """These numbers in the type that they had, made anew each time: for those who ask a linear layer for it."""
        return self.dequantized(self.dtype)

    @property
    def held_bytes(self) -> int:
        """Of what stands for the weight."""
        return sum(of.nbytes for of in self.parameters() if of is not self.bias)

    def in_full(self) -> nn.Linear:
        """A plain layer of these numbers, in the type that they had."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight, plain.bias = nn.Parameter(self.weight, requires_grad=False), self.bias
        return plain

    @override
    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        product: Tensor = _Product.apply(input.to(dtype), bias, self)
        return product


class Int8Linear(QuantizedLinear):
    """8 bits, by rows scaled to their largest number, as LLM.int8 stores weights (Dettmers et al. 2022, arXiv
    2208.07339)."""

    codes: Tensor
    scales: Tensor

    @override
    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        from bitsandbytes.functional import int8_vectorwise_quant

        codes, scales, _ = int8_vectorwise_quant(weight.to(torch.float16))  # no other type is taken
        return {"codes": codes, "scales": scales}

    @override
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import int8_vectorwise_dequant

        return int8_vectorwise_dequant(self.codes.view(torch.int8), self.scales.view(torch.float32)).to(dtype)


class NF4Linear(QuantizedLinear):
    """NormalFloat of 4 bits, in blocks of 64 scaled to their largest number; that lies in 8 bits less the mean of all,
    in blocks of 256 (QLoRA's double quantisation: Dettmers et al. 2023, arXiv 2305.14314)."""

    codes: Tensor
    largest: Tensor
    scales: Tensor
    mean: Tensor

    @override
    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        return {
            "codes": codes, "largest": state.absmax, "scales": state.state2.absmax, "mean": state.offset.reshape(1)
        }  # fmt: skip

    @override
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise

        table, scales, mean = (
            _table_of_8_bits(self.codes.device),
            *(of.view(torch.float32) for of in (self.scales, self.mean)),
        )
        largest = dequantize_blockwise(self.largest, absmax=scales, code=table, blocksize=256) + mean
        made = torch.float32 if dtype is torch.float64 else dtype  # which bitsandbytes has not
        shape = torch.Size((self.out_features, self.in_features))
        state = QuantState(absmax=largest, shape=shape, dtype=made, blocksize=64, quant_type="nf4")
        return dequantize_4bit(self.codes, state).to(dtype)


@cache
def _table_of_8_bits(device: torch.device) -> Tensor:
    """The numbers that 8 bits of a block's scale stand for, (256,), on that device."""
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map().to(device)


class _Product(torch.autograd.Function):
    """A product with weights that are there in full only while it is computed, in the forward and the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, bias: Tensor | None, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(input, layer.dequantized(input.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        of_input = gradient @ ctx.layer.dequantized(gradient.dtype) if ctx.needs_input_grad[0] else None
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return of_input, of_bias, None


def quantize_linear(model: "PreTrainedModel", kind: type[QuantizedLinear], filled: bool) -> int:
    """Put layers of that kind in the place of all linear ones but the head; how many. filled: as in QuantizedLinear."""
    head = model.get_output_embeddings()
    names = [name for name, of in model.named_modules() if type(of) is nn.Linear and of is not head]
    for name in names:  # one at a time, so that its float numbers can go before the next one's turn
        linear: Any = model.get_submodule(name)
        model.set_submodule(name, kind(linear, filled))
    return len(names)


def parameter_count(model: nn.Module) -> int:
    """How many numbers the parameters are, or stand for."""
    quantized = [of for of in model.modules() if isinstance(of, QuantizedLinear)]
    more = sum(of.in_features * of.out_features - of.held_bytes for of in quantized)
    return sum(of.numel() for of in model.parameters()) + more
