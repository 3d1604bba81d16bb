"""Which pairs each optimizer step sees."""

import math
from functools import lru_cache

import torch


class Order:
    """The training order: a pure function of seed and step, so that a resumed run needs to remember nothing.

    size: training pairs, or None for an endless source, which is read straight through.
    A finite source gets a new order each epoch; an epoch's last batch is short where the sizes do not divide.
    """

    def __init__(self, size: int | None, global_batch_size: int, seed: int) -> None:
        self.size, self.global_batch_size, self.seed = size, global_batch_size, seed

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; None for an endless source."""
        return None if self.size is None else math.ceil(self.size / self.global_batch_size)

    def positions(self, step: int) -> list[int]:
        """Positions of the pairs of optimizer step `step`, counted from 1."""
        if self.size is None or self.steps_per_epoch is None:
            return list(range((step - 1) * self.global_batch_size, step * self.global_batch_size))
        epoch, batch = divmod(step - 1, self.steps_per_epoch)
        start = batch * self.global_batch_size
        return _permutation(self.size, self.seed * 1_000_003 + epoch)[start : start + self.global_batch_size]


@lru_cache(maxsize=1)
def _permutation(size: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
