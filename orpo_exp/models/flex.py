"""Attention within rows that hold more than one text, all of a batch in one call: torch's FlexAttention, for GPUs.

Blocks of the attention matrix that nobody sees are skipped; it is compiled once, for rows of any length.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from orpo_exp.models.segments import Attend
from orpo_exp.types import Segment


@cache
def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


class FlexAttend(Attend):
    """Of all rows and texts at once; there is no dropout."""

    @override
    def attended(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
    ) -> Tensor:
        assert not dropout, "refused before anything was loaded"
        if window not in self.masks:
            self.masks[window] = self._block_mask(query.shape[2], window, query.device)
        grouped = query.shape[1] != key.shape[1]
        attended: Tensor = _flex_attention()(
            query, key, value, block_mask=self.masks[window], scale=scaling, enable_gqa=grouped
        )
        return attended

    def _block_mask(self, length: int, window: int | None, device: torch.device) -> Any:
        """The block mask of rows of this length."""
        from torch.nn.attention.flex_attention import create_block_mask

        places = [_places(row, length) for row in self.segments.rows]
        segment, branch, position = (torch.tensor(of, device=device) for of in zip(*places, strict=True))

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            of = branch[row, key]
            own = (segment[row, query] == segment[row, key]) & ((of == 0) | (of == branch[row, query]))
            seen = own & (key <= query)
            return seen if window is None else seen & (position[row, query] - position[row, key] < window)

        return create_block_mask(sees, len(places), None, length, length, device=device)


def _places(row: tuple[Segment, ...], length: int) -> tuple[list[int], list[int], list[int]]:
    """Of each token of a row the number of its segment, that of its branch (0: the trunk), and its position in the
    text. What pads the row is a segment of its own."""
    segments: list[int] = []
    branches: list[int] = []
    positions: list[int] = []
    padding = length - sum(of.trunk + sum(of.branches) for of in row)
    for number, of in enumerate((*row, Segment(padding, ()))):
        for branch, size in enumerate((of.trunk, *of.branches)):
            begin = of.trunk if branch else 0
            segments += [number] * size
            branches += [branch] * size
            positions += range(begin, begin + size)
    return segments, branches, positions
