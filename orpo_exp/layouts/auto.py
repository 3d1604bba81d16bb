"""The layout that the model carries and that computes the least."""

from collections.abc import Sequence

from typing_extensions import override

from orpo_exp.layouts.base import LAYOUTS, Layout
from orpo_exp.layouts.padded import Padded
from orpo_exp.layouts.shared import Packed
from orpo_exp.types import TokenizedPair

# Below this share of tokens saved the plain layout is the one: its attention is one call for all rows.
WORTHWHILE = 0.05


@LAYOUTS.register("auto")
class Auto(Padded):
    """Until it is settled, the plain layout."""

    @override
    def settled(self, sample: Sequence[TokenizedPair], one_text_a_row: str | None) -> tuple[Layout, str]:
        padded, packed = Padded(Padded.Config()), Packed(Packed.Config())
        if one_text_a_row:
            return padded, f"for a row can hold one text only: {one_text_a_row}"
        # pair by pair: how much padding there is depends on the micro-batches
        saved = 1 - sum(packed.computed([p]) for p in sample) / sum(padded.computed([p]) for p in sample)
        if saved < WORTHWHILE:
            return padded, f"for the others compute {saved:.0%} fewer tokens of these pairs"
        return packed, f"which computes {saved:.0%} fewer tokens of these pairs than padded"
