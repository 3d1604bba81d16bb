"""Models with random weights, in any causal-LM architecture of Hugging Face."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from orpo_exp.models.base import MODELS, ModelConfig, ModelSource, set_dropout
from orpo_exp.models.pretrained import load_tokenizer
from orpo_exp.models.tokenizers import BYTES_VOCABULARY, bytes_tokenizer, trained_tokenizer
from orpo_exp.schema import ConfigError, setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@MODELS.register("scratch")
class Scratch(ModelSource):
    """Random weights, drawn on the CPU from the run's seed: the same on every rank and every machine."""

    @dataclass
    class Config(ModelConfig):
        """arch: a Hugging Face model type; tokenizer: bytes, train, or a folder or hub id; sizes under Hugging Face's
        own names, None where the architecture or the tokenizer decides."""

        arch: str = "llama"
        tokenizer: str = "train"
        vocab_size: int | None = setting(4096, ge=BYTES_VOCABULARY)
        hidden_size: int = setting(128, ge=1)
        intermediate_size: int | None = setting(None, ge=1)
        num_hidden_layers: int = setting(4, ge=1)
        num_attention_heads: int = setting(4, ge=1)
        num_key_value_heads: int | None = setting(None, ge=1)
        max_position_embeddings: int = setting(2048, ge=1)
        tie_word_embeddings: bool = True

        def __post_init__(self) -> None:
            super().__post_init__()
            for name, whole in (("num_attention_heads", self.hidden_size), ("num_key_value_heads", None)):
                heads = getattr(self, name)
                divided = self.num_attention_heads if whole is None else whole
                if heads is not None and divided % heads:
                    raise ConfigError(name, heads, f"a divisor of {divided}", "Choose sizes that divide evenly.")
            if self.vocab_size is None and self.tokenizer == "train":
                raise ConfigError(
                    "vocab_size", None, f"a number from {BYTES_VOCABULARY}", "tokenizer=train needs to know how large."
                )

    config: Config

    def check(self) -> None:
        """Refuse an unknown architecture."""
        self._hf_config(vocab_size=self.config.vocab_size or BYTES_VOCABULARY)

    def tokenizer(self, texts: Iterable[str]) -> "PreTrainedTokenizerBase":
        """See ModelSource."""
        if self.config.tokenizer == "bytes":
            return bytes_tokenizer()
        if self.config.tokenizer == "train":
            assert self.config.vocab_size is not None  # refused by the configuration
            return trained_tokenizer(texts, self.config.vocab_size)
        return load_tokenizer(self.config.tokenizer, key="model.tokenizer")

    def model(self, tokenizer: "PreTrainedTokenizerBase", seed: int) -> "PreTrainedModel":
        """See ModelSource."""
        from transformers import AutoModelForCausalLM

        vocab_size = self.config.vocab_size or len(tokenizer)
        if vocab_size < len(tokenizer):
            raise ConfigError(
                "model.vocab_size", vocab_size, f"at least {len(tokenizer)}, the tokenizer's size", "Or leave it null."
            )
        hf_config = self._hf_config(vocab_size)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(hf_config, name, getattr(tokenizer, name))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(hf_config, attn_implementation=self.config.attention.value)

    def _hf_config(self, vocab_size: int) -> Any:
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

        c = self.config
        if c.arch not in CONFIG_MAPPING or CONFIG_MAPPING[c.arch] not in MODEL_FOR_CAUSAL_LM_MAPPING:
            known = sorted(name for name in CONFIG_MAPPING if CONFIG_MAPPING[name] in MODEL_FOR_CAUSAL_LM_MAPPING)
            raise ConfigError("model.arch", c.arch, f"one of {', '.join(known)}", "Choose a causal LM's model type.")
        hf_config = CONFIG_MAPPING[c.arch]()
        head_dim = c.hidden_size // c.num_attention_heads
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": c.hidden_size,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "max_position_embeddings": c.max_position_embeddings,
            "tie_word_embeddings": c.tie_word_embeddings,
        }
        # what an architecture may lack is an error only where it was asked for
        optional = {
            "intermediate_size": (c.intermediate_size, 4 * c.hidden_size),
            "num_key_value_heads": (c.num_key_value_heads, c.num_attention_heads),
            "head_dim": (None, head_dim),
            "query_pre_attn_scalar": (None, head_dim),  # Gemma's name for what attention scores are scaled by
        }
        for name, (asked, default) in optional.items():
            if hasattr(hf_config, name):
                sizes[name] = default if asked is None else asked
            elif asked is not None:
                raise ConfigError(f"model.{name}", asked, f"null, for {c.arch} has no such size", f"Remove {name}.")
        for name, value in sizes.items():
            setattr(hf_config, name, value)
        set_dropout(hf_config, c.dropout)
        return type(hf_config).from_dict(hf_config.to_dict())  # lets the class derive what depends on the sizes
