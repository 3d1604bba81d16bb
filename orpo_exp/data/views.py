"""Some of the pairs of one or several sequences, by position."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol, TypeVar, overload

from torch import Tensor
from typing_extensions import override

T = TypeVar("T")
Of = TypeVar("Of", covariant=True)


class Numbered(Protocol[Of]):
    """Pairs by place, from 0."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Of: ...


class View(Sequence[T]):
    """positions: (n,) int64, counted through the parts one behind the other; any of them, in any order, or again."""

    def __init__(self, parts: Sequence[Numbered[T]], positions: Tensor) -> None:
        self.parts, self.positions = parts, positions
        # of a tensor each number would be a tensor first
        self._numbers = memoryview(positions.numpy())  # type: ignore[arg-type]
        self._begins = list(accumulate((len(part) for part in parts), initial=0))

    @override
    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> "View[T]": ...
    @override
    def __getitem__(self, place: int | slice) -> "T | View[T]":
        if isinstance(place, slice):
            return View(self.parts, self.positions[place])
        position = self._numbers[place]
        part = bisect_right(self._begins, position) - 1
        return self.parts[part][position - self._begins[part]]
