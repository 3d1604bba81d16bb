"""Models with random weights, in any causal-LM architecture of Hugging Face."""

import dataclasses
import difflib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from orpo_exp.models.attention import Attention
from orpo_exp.models.base import MODELS, ModelConfig, ModelSource, told_about
from orpo_exp.models.pretrained import check_folder, fetch, files_digest, load_tokenizer
from orpo_exp.models.tokenizers import BYTES_VOCABULARY, bytes_tokenizer, trained_tokenizer
from orpo_exp.schema import ConfigError, numeric_content, setting

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

OWN_TOKENIZERS = ("bytes", "train")
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
# what every architecture has, or takes without using it
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "tie_word_embeddings")


@MODELS.register("scratch")
class Scratch(ModelSource):
    """Random weights, drawn on the CPU from the run's seed: the same on every rank and every machine."""

    suited_lr = 3e-3

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
        initializer_range: float = setting(0.02, gt=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            divided = {"num_attention_heads": self.hidden_size, "num_key_value_heads": self.num_attention_heads}
            for name, whole in divided.items():
                heads = getattr(self, name)
                if heads is not None and whole % heads:
                    raise ConfigError(name, heads, f"a divisor of {whole}", "Choose sizes that divide evenly.")
            if self.vocab_size is None and self.tokenizer == "train":
                raise ConfigError(
                    "vocab_size", None, f"a number from {BYTES_VOCABULARY}", "tokenizer=train needs to know how large."
                )

    config: Config

    @override
    def check(self) -> None:
        """And an unknown architecture, and a tokenizer folder that is not there."""
        arch, known = self.config.arch, causal_lm_types()
        if arch not in known:
            close = difflib.get_close_matches(arch, known, n=1)
            do = f"Did you mean {close[0]}?" if close else "Choose one of these."
            raise ConfigError("model.arch", arch, f"a causal LM's model type: {', '.join(known)}", do)
        if self.config.tokenizer not in OWN_TOKENIZERS:
            check_folder(self.config.tokenizer, "model.tokenizer")
        super().check()

    @override
    def fetch(self) -> None:
        if self.config.tokenizer not in OWN_TOKENIZERS:
            fetch(self.config.tokenizer, "model.tokenizer")

    @override
    def facts(self, hub: bool) -> Mapping[str, Any]:
        c = self.config
        own_vocabulary = BYTES_VOCABULARY if c.tokenizer == "bytes" else None
        return {
            "model_type": c.arch,
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size or 4 * c.hidden_size,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": c.num_key_value_heads,
            "vocab_size": c.vocab_size or own_vocabulary,
            "tie_word_embeddings": c.tie_word_embeddings,
        }

    @override
    def positions(self) -> int | None:
        return self.config.max_position_embeddings

    @override
    def digest(self, seed: int) -> str:
        settings = numeric_content(self.config)
        for of_every_model in dataclasses.fields(ModelConfig):  # they say how to compute, not what weights to draw
            settings.pop(of_every_model.name, None)
        if self.config.tokenizer not in OWN_TOKENIZERS:
            settings["tokenizer"] = files_digest(self.config.tokenizer, "model.tokenizer", "tokenizer_config.json")
        return hashlib.sha256(json.dumps([settings, seed], sort_keys=True).encode()).hexdigest()

    @override
    def tokenizer(self, texts: Iterable[str]) -> "PreTrainedTokenizerBase":
        if self.config.tokenizer == "bytes":
            return bytes_tokenizer()
        if self.config.tokenizer == "train":
            assert self.config.vocab_size is not None  # refused by the configuration
            return trained_tokenizer(texts, self.config.vocab_size)
        return load_tokenizer(self.config.tokenizer, key="model.tokenizer")

    @override
    def model(self, hf_config: "PretrainedConfig", attention: Attention) -> "PreTrainedModel":
        return self.random(hf_config, attention)

    @override
    def told(self) -> AbstractContextManager[None]:
        return told_about("model.arch", self.config.arch, "an architecture that can be made in these sizes")

    @override
    def hf_config(self, tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
        from transformers import CONFIG_MAPPING

        c = self.config
        vocab_size = c.vocab_size or len(tokenizer)
        if vocab_size < len(tokenizer):
            raise ConfigError(
                "model.vocab_size", vocab_size, f"at least {len(tokenizer)}, the tokenizer's size", "Or leave it null."
            )
        with told_about("model.arch", c.arch, "an architecture that can be made in these sizes"):
            hf_config = CONFIG_MAPPING[c.arch]()
            hf_config.update(self._sizes(hf_config, vocab_size))
            hf_config.update({name: getattr(tokenizer, name) for name in SPECIAL_TOKENS})
            given = hf_config.to_dict()
            given.pop("layer_types", None)  # of as many layers as the class would have by itself
            return type(hf_config).from_dict(given)  # lets the class derive what depends on the sizes

    def _sizes(self, hf_config: "PretrainedConfig", vocab_size: int) -> dict[str, Any]:
        c = self.config
        head_dim = c.hidden_size // c.num_attention_heads
        sizes = {"vocab_size": vocab_size} | {name: getattr(c, name) for name in SIZES}
        # what an architecture may lack is an error only where it was asked for
        optional = {
            "intermediate_size": (c.intermediate_size, 4 * c.hidden_size),
            "num_key_value_heads": (c.num_key_value_heads, c.num_attention_heads),
            "head_dim": (None, head_dim),
            "query_pre_attn_scalar": (None, head_dim),  # Gemma's name for what attention scores are scaled by
            "initializer_range": (None, c.initializer_range),
        }
        for name, (asked, default) in optional.items():
            if isinstance(getattr(type(hf_config), name, None), property):
                continue  # Falcon derives its head_dim
            if hasattr(hf_config, name):
                sizes[name] = default if asked is None else asked
            elif asked is not None:
                raise ConfigError(f"model.{name}", asked, f"null, for {c.arch} has no such size", f"Remove {name}.")
        return sizes


def causal_lm_types() -> list[str]:
    """The model types of all causal LMs of Hugging Face, read off the library's source: importing it takes seconds."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin
    source = (Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py").read_text(encoding="utf-8")
    table = re.search(r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict\($(.*?)^\)$", source, re.DOTALL | re.MULTILINE)
    assert table, "this version of transformers keeps its causal LMs elsewhere"
    return sorted(re.findall(r'^ *\("(.+?)", ', table[1], re.MULTILINE))
