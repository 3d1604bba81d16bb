"""Which causal LMs ColossalAI 0.5.0's hybrid parallelism carries, and what it asks of their sizes.

Found by training tiny models of each, with random biases and norms, beside ddp on one process, with transformers
4.51.3. All is read off config.json; nothing is loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Any

Config = Mapping[str, Any]  # the contents of a config.json

# The sizes that may have to be divided, under the names that config.json has for them.
HEADS = ("num_attention_heads", "n_head")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
INNER = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
EXPERTS = ("num_local_experts",)
VOCABULARY = ("vocab_size",)
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


class SequenceMode(Enum):
    """Who shares the positions of a sequence outside of attention, and how they come together for it.

    all_to_all: ranks of their own, which inside attention share its heads (Jacobs et al. 2023, arXiv 2309.14509).
    split_gather, ring: those that share every matrix; gathered at once (Korthikanti et al. 2022, arXiv 2205.05198), or
    part by part while they are multiplied.
    """

    all_to_all = "all_to_all"
    split_gather = "split_gather"
    ring = "ring"

    @property
    def of_tensor_ranks(self) -> bool:
        """Whether the ranks that share every matrix share the positions too."""
        return self is not SequenceMode.all_to_all


@dataclass(frozen=True)
class Limit:
    """Models that are not carried. what, why: for people. holds: whether a config.json is that of such a model."""

    what: str
    why: str
    holds: Callable[[Config], bool]


@dataclass(frozen=True)
class Architecture:
    """How far an architecture is carried.

    not_tensor, not_staged: the models that tensor parallelism, or a pipeline, does not carry.
    sequence: the ways in which ranks may share positions.
    divided: the sizes that plugin.tp_size must divide, those of attention's heads also where ranks of their own share
    positions. A vocabulary that is not among them is padded where need be.
    attention: the only kernel that its policy knows, by model.attention's names; None: any.
    stages_want_mask: whether a stage of a pipeline wants a mask, even one that hides nothing.
    shared_want_mask: whether attention hides nothing by itself where ranks share positions.
    """

    not_tensor: tuple[Limit, ...] = ()
    not_staged: tuple[Limit, ...] = ()
    sequence: frozenset[SequenceMode] = frozenset()
    divided: tuple[tuple[str, ...], ...] = ()
    attention: str | None = None
    stages_want_mask: bool = False
    shared_want_mask: bool = False


LIKE_LLAMA = Architecture(divided=(HEADS, KEY_VALUE_HEADS, INNER))
ALL_MODES = frozenset(SequenceMode)

# By config.json's `model_type`. Not carried are Cohere, whose attention is replaced by one that wants a mask of
# ColossalAI's own form and leaves out use_qk_norm, and GPT-2, whose forward pass fails without labels.
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": replace(LIKE_LLAMA, sequence=ALL_MODES, shared_want_mask=True),
        "mistral": LIKE_LLAMA,
        "qwen2": Architecture(
            not_staged=(
                Limit(
                    "use_sliding_window", "its stages leave the window out", lambda c: bool(c.get("use_sliding_window"))
                ),
            ),
            sequence=ALL_MODES,
            divided=(HEADS, KEY_VALUE_HEADS, INNER, VOCABULARY),
        ),
        "mixtral": Architecture(
            not_staged=(
                Limit(
                    "a sliding_window", "that of its stages is a token wider", lambda c: bool(c.get("sliding_window"))
                ),
            ),
            divided=(HEADS, KEY_VALUE_HEADS, EXPERTS, VOCABULARY),  # experts are not cut: each rank has all of them
        ),
        "falcon": Architecture(
            not_tensor=(
                Limit(
                    "multi_query without new_decoder_architecture",
                    "ColossalAI leaves it whole on every rank",
                    lambda c: bool(c.get("multi_query", True)) and not c.get("new_decoder_architecture", False),
                ),
                Limit("alibi", "every rank takes the slopes of the first heads", lambda c: bool(c.get("alibi", False))),
            ),
            divided=(HEADS, KEY_VALUE_HEADS, INNER),
            stages_want_mask=True,  # with alibi alone; to others one that hides nothing makes no difference
        ),
        "opt": Architecture(
            not_tensor=(
                Limit(
                    "tie_word_embeddings=false",
                    "ColossalAI ties them",
                    lambda c: not c.get("tie_word_embeddings", True),
                ),
            ),
            divided=(HEADS, INNER),
            attention="eager",
            stages_want_mask=True,
        ),
        "bloom": Architecture(divided=(HEADS,)),
        "gptj": Architecture(divided=(HEADS, INNER)),
    }
)


def size(config: Config, names: tuple[str, ...]) -> int | None:
    """A size of a model, under whichever name its config.json has for it; None where it is not given."""
    return next((int(config[name]) for name in names if config.get(name) is not None), None)


def not_carried(
    config: Config, attention: str, tp_size: int, pp_size: int, sequence: SequenceMode | None
) -> str | None:
    """Why hybrid parallelism does not carry this model, for people; None where it does, or nothing is known of it."""
    if not config:
        return None
    name = str(config.get("model_type"))
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        return f"it is {name}"
    if architecture.attention not in (None, attention):
        return f"{name} wants model.attention={architecture.attention}"
    if sequence and sequence not in architecture.sequence:
        return f"{name} is not cut by positions in this way, {sequence.value}"
    if sequence and attention != "eager":  # ColossalAI's own; some architectures' masks are made for what is named
        return "ranks that share positions want model.attention=eager"
    limits = (architecture.not_tensor if tp_size > 1 else ()) + (architecture.not_staged if pp_size > 1 else ())
    limit = next((limit for limit in limits if limit.holds(config)), None)
    return f"{name} with {limit.what} cannot be cut so: {limit.why}" if limit else None


def not_divided(config: Config, tp_size: int, head_ranks: int) -> str | None:
    """Which size of this model cannot be divided, for people; None where all that must be can.

    head_ranks: how many ranks share the heads inside attention, if more than tp_size do.
    """
    architecture = ARCHITECTURES.get(str(config.get("model_type")), Architecture())
    for names in architecture.divided:
        ranks = head_ranks if names in (HEADS, KEY_VALUE_HEADS) else tp_size
        if (given := size(config, names)) is not None and given % ranks:
            return f"{names[0]} is {given}"
    return None
