"""Log-probabilities from logits whose columns are split among ranks: no rank ever gathers a whole row of them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from orpo_exp.scoring import Vocabulary


class SplitVocabulary(Vocabulary):
    """Columns that lie one after another on the ranks of a group, which call every method together, with the same rows.

    columns: of a rank, the padding of the vocabulary included; the last ranks' heads leave theirs out.
    """

    def __init__(self, group: dist.ProcessGroup, columns: int) -> None:
        self.group, self.columns = group, columns
        self.first = dist.get_rank(group) * columns  # the token of this rank's first column

    @override
    def logsumexp(self, logits: Tensor) -> Tensor:
        result: Tensor = _LogSumExp.apply(logits, self.group)
        return result

    @override
    def pick(self, logits: Tensor, tokens: Tensor) -> Tensor:
        result: Tensor = _Pick.apply(logits, tokens - self.first, self.group)
        return result

    @override
    def largest(self, logits: Tensor) -> Tensor:
        size = dist.get_world_size(self.group)
        value, place = logits.new_full((len(logits),), -torch.inf), logits.new_zeros(len(logits), dtype=torch.int64)
        if logits.shape[1]:
            value, place = logits.max(1)
        values, places = ([torch.empty_like(of) for _ in range(size)] for of in (value, place))
        dist.all_gather(values, value.contiguous(), group=self.group)
        dist.all_gather(places, place + self.first, group=self.group)
        best = torch.stack(values).argmax(0)  # (n,) the rank; the first of equal ones
        return torch.stack(places).gather(0, best[None]).squeeze(0)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, group: dist.ProcessGroup) -> Tensor:
        largest = logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), -torch.inf)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        total = (logits - largest[:, None]).exp().sum(1)
        dist.all_reduce(total, group=group)
        result = total.log() + largest
        ctx.save_for_backward(logits, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        logits, result = ctx.saved_tensors
        return (logits - result[:, None]).exp() * gradients[0][:, None], None


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, place: Tensor, group: dist.ProcessGroup) -> Tensor:
        own = (place >= 0) & (place < logits.shape[1])
        rows = own.nonzero().squeeze(1)
        picked = logits.new_zeros(len(logits))
        picked[rows] = logits[rows, place[rows]]
        dist.all_reduce(picked, group=group)
        ctx.save_for_backward(rows, place[rows])
        ctx.shape = logits.shape
        return picked

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        rows, columns = ctx.saved_tensors
        result = gradients[0].new_zeros(ctx.shape)
        result[rows, columns] = gradients[0][rows]
        return result, None, None
