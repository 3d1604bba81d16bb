"""Gradient checkpointing: what of a block is kept for its backward pass, and what is computed again."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import TYPE_CHECKING

import torch

from orpo_exp.models.segments import recomputed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Keeps(Enum):
    """What stays of a block that is computed again: nothing but its inputs, or also what its products made."""

    nothing = "nothing"
    products = "products"


# Matrix products and attention: nearly all of a block's time, and about half of what it would keep.
PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]


def recompute(model: "PreTrainedModel", keeps: Keeps) -> None:
    """Have a model's blocks compute again in the backward pass what is not kept."""
    attention = model.config._attn_implementation

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of the forward pass, and of what is computed again."""
        during, again = recomputed(attention)
        if keeps is Keeps.nothing:
            return during, again
        from torch.utils.checkpoint import create_selective_checkpoint_contexts

        kept, taken = create_selective_checkpoint_contexts(PRODUCTS)
        return kept, _both(again, taken)

    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})


@contextmanager
def _both(first: AbstractContextManager[None], second: AbstractContextManager[None]) -> Iterator[None]:
    with first, second:
        yield
