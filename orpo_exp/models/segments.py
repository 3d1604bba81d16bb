"""Attention within rows that hold more than one text: see `types.Segments`.

A token sees its segment's trunk and its own branch. No mask of a whole row is made, under which nothing would be
skipped: the trunk and its first branch are causal attention as ever, and each further branch looks at the trunk and at
itself.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from orpo_exp.models.attention import Attention
from orpo_exp.types import Segment, Segments

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class SeveralTexts(Enum):
    """How rows attend that hold several texts: each text by calls of its own, or all at once by FlexAttention."""

    parts = "parts"
    flex = "flex"


# Those of `model.attention` that transformers looks up by name, and so can be given another function for a while.
LOOKED_UP = (Attention.sdpa, Attention.flash_attention_2)


def one_text_a_row(hf_config: "PretrainedConfig", attention: Attention) -> str | None:
    """Why a model's rows can hold one text only, for people; None where they can hold several."""
    from transformers import AutoModelForCausalLM

    of = AutoModelForCausalLM._model_mapping.get(type(hf_config), None)
    if of is None:
        return "its code is its own"
    if attention not in LOOKED_UP:
        return f"it attends by model.attention={attention.value}"
    if getattr(hf_config, "attn_logit_softcapping", None):
        return "it caps attention's scores"
    if not hasattr(sys.modules[of.__module__], "ALL_ATTENTION_FUNCTIONS"):
        return "its attention cannot be replaced"
    if "position_ids" not in inspect.signature(of.forward).parameters:
        return "it counts positions by itself"
    return None


def take_segments(model: "PreTrainedModel", attend: "Callable[[Segments], Attend]") -> None:
    """Let a model be called with `segments`, of which its own code knows nothing."""
    attention, during = model.config._attn_implementation, ExitStack()

    def before(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        segments = given.pop("segments", None)
        if segments is not None:
            during.enter_context(_attending(attention, attend(segments)))
        return args, given

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(lambda *_: during.close(), always_call=True)


def recomputed(attention: str) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for torch's checkpoint: what is computed again attends as it did, whatever batch is under way then."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if attention not in ALL_ATTENTION_FUNCTIONS:
        return nullcontext(), nullcontext()
    return nullcontext(), _attending(attention, ALL_ATTENTION_FUNCTIONS[attention])


@contextmanager
def _attending(attention: str, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, transformers finds this function under a kernel's name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    former = ALL_ATTENTION_FUNCTIONS[attention]
    ALL_ATTENTION_FUNCTIONS.register(attention, function)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register(attention, former)


class Attend:
    """An attention function, as transformers calls it, for one batch's segments."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self.masks: dict[Any, Any] = {}  # the layers want the same ones

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """query (rows, heads, positions, size), key and value with as many heads or a part of them give (rows,
        positions, heads, size). sliding_window: how many tokens a token sees, itself among them. The mask that
        transformers may have made of the rows is not looked at."""
        return self.attended(query, key, value, dropout, scaling, sliding_window).transpose(1, 2), None

    def attended(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
    ) -> Tensor:
        """(rows, heads, positions, size), part by part."""
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            """The queries are the last of the keys' positions."""
            n, seen = queries.shape[2], keys.shape[2]
            causal = n == seen and (window is None or seen <= window)
            mask = None if causal else self._mask(n, seen, window, queries)
            return scaled_dot_product_attention(queries, keys, values, mask, dropout, causal, scale=scaling)

        rows = zip(self.segments.rows, *(of.split(1) for of in (query, key, value)), strict=True)
        parts = [_row(row, q, k, v, attend) for row, q, k, v in rows]
        return parts[0] if len(parts) == 1 else torch.cat(parts)  # which would copy also a single one

    def _mask(self, n: int, seen: int, window: int | None, like: Tensor) -> Tensor:
        """(n, seen), to be added to the scores: the last n of `seen` positions see those up to themselves."""
        name = (n, seen, window)
        if name not in self.masks:
            visible = torch.ones(n, seen, dtype=torch.bool, device=like.device).tril(seen - n)
            if window is not None:
                visible = visible.triu(seen - n - window + 1)
            nothing = torch.zeros(n, seen, dtype=like.dtype, device=like.device)
            self.masks[name] = nothing.masked_fill_(~visible, -torch.inf)
        mask: Tensor = self.masks[name]
        return mask


def _row(row: tuple[Segment, ...], query: Tensor, key: Tensor, value: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """One row's (1, heads, positions, size), from its segments' parts."""
    sizes = [size for of in row for size in (of.trunk + sum(of.branches[:1]), *of.branches[1:])]
    padding = query.shape[2] - sum(sizes)
    parts = zip(*(of.split([*sizes, padding], 2) for of in (query, key, value)), strict=True)
    seen: list[Tensor] = []
    for of in row:
        queries, keys, values = next(parts)
        seen.append(attend(queries, keys, values))
        trunk = keys[:, :, : of.trunk], values[:, :, : of.trunk]
        for _ in of.branches[1:]:
            queries, *own = next(parts)
            seen.append(attend(queries, *(torch.cat(both, 2) for both in zip(trunk, own, strict=True))))
    if padding:  # it sees itself, so that a row of nothing else has a gradient, which is zero
        seen.append(attend(*next(parts)))
    return torch.cat(seen, 2)
