"""Log-probabilities from logits whose columns are split among ranks: no rank ever gathers a whole row of them."""

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
    def most(self, numbers: Tensor) -> Tensor:
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self.group)
        return numbers

    @override
    def total(self, numbers: Tensor) -> Tensor:
        dist.all_reduce(numbers, group=self.group)
        return numbers

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
