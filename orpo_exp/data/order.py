"""Which pairs each optimizer step sees."""

import math

import torch


class Order:
    """The training order: a pure function of seed and step, so that a resumed run needs to remember nothing.

    size: training pairs, or None for an endless source, which is read straight through.
    A finite source gets a new order each epoch; an epoch's last batch is short where the sizes do not divide.
    """

    def __init__(self, size: int | None, global_batch_size: int, seed: int) -> None:
        self.size, self.global_batch_size, self.seed = size, global_batch_size, seed
        self._epoch: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; None for an endless source."""
        return None if self.size is None else math.ceil(self.size / self.global_batch_size)

    def positions(self, step: int) -> list[int]:
        """Positions of the pairs of optimizer step `step`, counted from 1."""
        if self.steps_per_epoch is None:
            return list(range((step - 1) * self.global_batch_size, step * self.global_batch_size))
        epoch, batch = divmod(step - 1, self.steps_per_epoch)
        start = batch * self.global_batch_size
        return self._permutation(epoch)[start : start + self.global_batch_size]

    def _permutation(self, epoch: int) -> list[int]:
        if self._epoch[0] != epoch:
            assert self.size is not None
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch = (epoch, torch.randperm(self.size, generator=generator).tolist())
        return self._epoch[1]
