"""Log-probabilities behind a head that is one product of matrices, with a backward pass by hand.

Left to autograd, each chunk of logits would make a gradient of the whole head, to be added to that of the others; here
all chunks add to one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from orpo_exp.scoring.softmax import WHOLE, differentiate, normalise, overwritable

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearHead:
    """logits = finish(states @ weight.T + bias).

    weight: (vocabulary, hidden). bias: (vocabulary,). finish: what the architecture does to the product.
    """

    weight: Tensor
    bias: Tensor | None
    finish: Callable[[Tensor], Tensor]

    def __call__(self, states: Tensor) -> Tensor:
        """(n, hidden) -> (n, vocabulary)."""
        return self.finish(F.linear(states, self.weight, self.bias))


def head_of(module: nn.Module, finish: Callable[[Tensor], Tensor]) -> Head:
    """The head that a module and `finish` make; a LinearHead where the module is no more than its product."""
    if type(module) is nn.Linear and type(module.weight) is nn.Parameter:
        return LinearHead(module.weight, module.bias, finish)
    return lambda states: finish(module(states))


def linear_logps(hidden: Tensor, head: LinearHead, target: Tensor, rows: int, log_squared: bool) -> tuple[Tensor, ...]:
    """What `token_logps` gives, by chunks of so many rows. Products are computed in what autocast says, if it is on."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    bias = None if head.bias is None else head.bias.to(dtype)
    logps, squares = _Scored.apply(
        hidden.to(dtype), head.weight.to(dtype), bias, target, head.finish, rows, log_squared, torch.is_grad_enabled()
    )
    return (logps, squares) if log_squared else (logps,)


class _Logits:
    """A chunk of logits. numbers: (rows, vocabulary) float32 without gradient, free to be overwritten."""

    def __init__(self, states: Tensor, head: LinearHead, differentiated: bool) -> None:
        with torch.no_grad():
            self.product = F.linear(states, head.weight, head.bias)
        with torch.set_grad_enabled(differentiated):
            self.finished = overwritable(head.finish(self.product.requires_grad_(differentiated)))
        self.numbers = self.finished.detach()

    def gradient(self) -> Tensor:
        """Of the product, from that of the logits, which stands in `numbers`."""
        if self.finished is self.product:
            return self.numbers
        return torch.autograd.grad(self.finished, self.product, self.numbers)[0]


class _Scored(torch.autograd.Function):
    """What `linear_logps` does. Logits of a single chunk are kept for the backward pass, others are made again."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        finish: Callable[[Tensor], Tensor],
        rows: int,
        log_squared: bool,
        differentiated: bool,
    ) -> tuple[Tensor, Tensor]:
        head = LinearHead(weight, bias, finish)
        keep = differentiated and len(states) <= rows
        parts = []
        for some, of in zip(states.split(rows), tokens.split(rows), strict=True):
            logits = _Logits(some, head, keep)
            parts.append(normalise(logits.numbers, of, WHOLE, log_squared))
        logps, squares, largest, share = (torch.cat(numbers) for numbers in zip(*parts, strict=True))
        ctx.save_for_backward(states, weight, bias, tokens, largest, share)
        ctx.finish, ctx.rows, ctx.kept = finish, rows, logits if keep else None
        ctx.mark_non_differentiable(squares)
        return logps, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:
        states, weight, bias, tokens, largest, share = ctx.saved_tensors
        head = LinearHead(weight, bias, ctx.finish)
        needed = ctx.needs_input_grad
        of_states = torch.empty_like(states) if needed[0] else None
        of_weight = torch.empty_like(weight) if needed[1] else None
        of_bias = torch.zeros_like(bias) if needed[2] else None
        for first in range(0, max(len(states), 1), ctx.rows):
            rows = slice(first, first + ctx.rows)
            kept, ctx.kept = ctx.kept, None
            logits = kept or _Logits(states[rows], head, differentiated=True)
            numbers, made_again = logits.numbers, None if kept else largest[rows]
            differentiate(numbers, tokens[rows], share[rows], gradient[rows], WHOLE, made_again)
            of_product = logits.gradient()
            if of_states is not None:
                torch.mm(of_product, weight, out=of_states[rows])
            if of_weight is not None:
                of_weight.addmm_(of_product.T, states[rows], beta=1 if first else 0)
            if of_bias is not None:
                of_bias += of_product.sum(0)
        return of_states, of_weight, of_bias, None, None, None, None, None
