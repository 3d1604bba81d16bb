"""How a model attends: how far, and by a kernel that does all that its configuration asks for."""

import logging
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from orpo_exp.schema import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)


class Attention(Enum):
    """The attention kernel, by Hugging Face's names."""

    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


def positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model is made for, read from its config.json; None where nothing limits it."""
    text = {**config, **(config.get("text_config") or {})}
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
    named = next((text[name] for name in names if text.get(name)), None)
    if named is None:
        return None
    scaling = text.get("rope_scaling") or {}  # some of these count the stretched positions already, some do not
    stretched = (scaling.get("factor") or 1) * scaling.get("original_max_position_embeddings", named)
    return max(named, int(stretched))


def _narrow(text: Any) -> bool:
    """Whether a sliding window is narrower than the longest text."""
    limit = positions(text.to_dict())
    return bool(text.sliding_window) and (limit is None or text.sliding_window < limit)


SDPA, EAGER, FLASH = Attention
QWEN = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")

# What the configurations of some model types may ask for and not every kernel of transformers 4.51.3 does, which it
# leaves out without a word (read off its source): the types, what it is, whether it is asked for, and who does it, the
# best first. Falcon's eager kernel adds ALiBi twice; the windows of Qwen belong to some of its layers only; Moshi's
# needs a mask, which no layout gives. Later versions refuse some of it by themselves and do more: what is said here
# holds there too, at worst for a slower kernel than need be, or none.
ASKS: tuple[tuple[tuple[str, ...], str, Callable[[Any], object], tuple[Attention, ...]], ...] = (
    (("gemma2",), "attn_logit_softcapping", lambda c: c.attn_logit_softcapping, (EAGER, FLASH)),
    (("gemma3_text",), "attn_logit_softcapping", lambda c: c.attn_logit_softcapping, ()),
    (("gpt2",), "scale_attn_by_inverse_layer_idx", lambda c: c.scale_attn_by_inverse_layer_idx, (EAGER,)),
    (("gpt2",), "scale_attn_weights: false", lambda c: not c.scale_attn_weights, (EAGER,)),
    (("gpt_bigcode",), "scale_attn_weights: false", lambda c: not c.scale_attn_weights, (SDPA, EAGER)),
    (("gpt_neo",), "local attention", lambda c: "local" in c.attention_layers, (EAGER,)),
    (("falcon",), "alibi", lambda c: c.alibi, (SDPA,)),
    (QWEN, "max_window_layers", lambda c: c.use_sliding_window and c.max_window_layers and _narrow(c), (FLASH,)),
    (("jamba",), "sliding_window", _narrow, (FLASH,)),
    (("moshi",), "sliding_window", _narrow, ()),
)


def kernel_for(hf_config: "PretrainedConfig", chosen: Attention) -> Attention:
    """The chosen kernel, or where that leaves out what the configuration asks for another one, said with a warning.

    Raises ConfigError where no kernel does it, or only one that may not be installed. A window that is not in use is
    taken out of the configuration: Qwen 2 and 3 are cut to it all the same.
    """
    text = hf_config.get_text_config(decoder=True)
    if getattr(text, "use_sliding_window", None) is False:
        text.sliding_window = None
    for model_types, what, asked, done_by in ASKS:
        if text.model_type not in model_types or chosen in done_by or not asked(text):
            continue
        instead = next((kernel for kernel in done_by if kernel is not FLASH), None)
        if instead is None:
            allowed = f"with {what} of {text.model_type} {' or '.join(k.value for k in done_by) or 'none'}"
            do = "Choose one that computes it, or another model."
            raise ConfigError("model.attention", chosen.value, allowed, do)
        log.warning(
            "model.attention=%s leaves out what the model's configuration asks for (%s): %s is used instead",
            *(chosen.value, what, instead.value),
        )
        chosen = instead
    return chosen
