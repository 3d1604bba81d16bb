"""What a model source is, and what every causal LM gets on its way in: dropout, checkpointing, a checked head."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from orpo_exp.models.attention import Attention, kernel_for
from orpo_exp.models.flex import FlexAttend
from orpo_exp.models.head import check_architecture, finish_logits
from orpo_exp.models.recompute import Keeps, recompute
from orpo_exp.models.segments import LOOKED_UP, Attend, SeveralTexts, one_text_a_row, take_segments
from orpo_exp.registry import Registry
from orpo_exp.schema import ConfigError, Refused, Settings, setting
from orpo_exp.types import Builder, BuiltModel
from orpo_exp.versions import no_init_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class ModelConfig(Settings):
    """Settings every model has."""

    dropout: float = setting(0.0, ge=0, lt=1)
    attention: Attention = Attention.sdpa
    several_texts: SeveralTexts = field(default=SeveralTexts.parts, metadata={"as_before": SeveralTexts.parts})
    gradient_checkpointing: bool = False
    gradient_checkpointing_keeps: Keeps = field(default=Keeps.nothing, metadata={"affects_numbers": False})


@dataclass(frozen=True)
class CausalLM:
    """A causal LM that is yet to be made.

    tokenizer: fast, with an EOS token. build: how to make the model. one_text_a_row: why its rows can hold one text
    only, for people; None where they can hold several, as `types.Segments` has them.
    """

    tokenizer: "PreTrainedTokenizerBase"
    build: Builder
    one_text_a_row: str | None


class ModelSource(ABC):
    """Where a model and its tokenizer come from.

    suited_lr: a peak learning rate of Adam that suits weights of this origin, used where none is given. new_tokens: as
    BuiltModel has them; known with `hf_config`.
    """

    Config: ClassVar[type[ModelConfig]]
    suited_lr: ClassVar[float]
    new_tokens: int = 0

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    @property
    def quantized(self) -> bool:
        """Whether weights lie in so few bits that they cannot be trained."""
        return False

    @property
    def found_at(self) -> str | None:
        """Where others find the weights it starts from: a folder or a hub id; None: nowhere."""
        return None

    def check(self) -> None:
        """Refuse with ConfigError what can be refused without loading anything."""
        c = self.config
        if c.several_texts is SeveralTexts.flex:
            if c.dropout:
                allowed = "parts with model.dropout, which FlexAttention has not"
                raise ConfigError("model.several_texts", "flex", allowed, "Choose model.dropout=0.")
            if c.attention not in LOOKED_UP:
                allowed = f"parts with model.attention={c.attention.value}, by which a row holds one text"
                raise ConfigError("model.several_texts", "flex", allowed, "Choose model.attention=sdpa.")
        self.positions()

    def fetch(self) -> None:
        """Have all that a hub holds of it in this machine's cache, for ranks that ask none. ConfigError where it cannot
        be had."""
        return None

    @abstractmethod
    def facts(self, hub: bool) -> Mapping[str, Any]:
        """The contents of its config.json, or what of them is known; nothing else is loaded. hub: whether a hub may be
        asked; without it, nothing is known of what lies there."""

    @abstractmethod
    def positions(self) -> int | None:
        """The longest text that the model is made for, in tokens; None where nothing limits it. It loads no weights."""

    @abstractmethod
    def digest(self, seed: int) -> str:
        """A hexadecimal SHA-256 of where the starting weights come from, wherever that lies; taken without a model."""

    @abstractmethod
    def tokenizer(self, texts: Iterable[str]) -> "PreTrainedTokenizerBase":
        """The tokenizer; `texts` are the data's own, for one that is trained on them."""

    @abstractmethod
    def hf_config(self, tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
        """The model's Hugging Face configuration; ConfigError where the vocabulary is too small for the tokenizer."""

    @abstractmethod
    def model(self, hf_config: "PretrainedConfig", attention: Attention) -> "PreTrainedModel":
        """The causal LM with that kernel, in float32 unless configured otherwise, on the CPU; torch's seed draws random
        weights."""

    def quantize(self, model: "PreTrainedModel", filled: bool) -> None:
        """Put weights into fewer bits, where that is asked for. filled: whether the model holds its weights yet."""
        return None

    def prepare(self, texts: Iterable[str], seed: int) -> CausalLM:
        """The tokenizer, and how to make the model; no weights are loaded. `seed` draws random weights.

        Raises Refused where the tokenizer or the configuration cannot be read, or they do not fit each other.
        """
        if self.config.several_texts is SeveralTexts.flex and not torch.cuda.is_available():
            allowed = "parts on a CPU, where FlexAttention has no backward pass"
            raise ConfigError("model.several_texts", "flex", allowed, "Choose model.several_texts=parts.")
        tokenizer = self.tokenizer(texts)
        hf_config = self.hf_config(tokenizer)
        set_dropout(hf_config, self.config.dropout)
        attention = kernel_for(hf_config, self.config.attention)

        def whole() -> BuiltModel:
            with torch.random.fork_rng(devices=[]):
                check_architecture(lambda small: self.random(small, attention), hf_config)
                torch.manual_seed(seed)
                model = self.model(hf_config, attention)
            self.quantize(model, filled=True)
            return self._built(model)

        def empty() -> BuiltModel:
            with no_init_weights():  # what is not written takes no memory
                model = self.random(hf_config, attention)
            model.tie_weights()
            self.quantize(model, filled=False)
            return self._built(model)

        return CausalLM(tokenizer, Builder(whole, empty), one_text_a_row(hf_config, attention))

    @abstractmethod
    def told(self) -> AbstractContextManager[None]:
        """Tell what transformers makes of this source as a ConfigError about it; see `told_about`."""

    def random(self, hf_config: "PretrainedConfig", attention: Attention) -> "PreTrainedModel":
        """A model of this configuration, its weights drawn from torch's seed."""
        from transformers import AutoModelForCausalLM

        trusted = getattr(self.config, "trust_remote_code", False)
        with self.told():
            return AutoModelForCausalLM.from_config(
                hf_config, attn_implementation=attention.value, trust_remote_code=trusted
            )

    def _built(self, model: "PreTrainedModel") -> BuiltModel:
        if self.config.gradient_checkpointing:
            with told_about("model.gradient_checkpointing", True, "false for this architecture"):
                recompute(model, self.config.gradient_checkpointing_keeps)
        take_segments(model, FlexAttend if self.config.several_texts is SeveralTexts.flex else Attend)
        return BuiltModel(model, finish_logits(model.config), new_tokens=self.new_tokens)


@contextmanager
def told_about(key: str, given: object, allowed: str) -> Iterator[None]:
    """Tell what transformers makes of something that the user named as a ConfigError about that."""
    from safetensors import SafetensorError

    try:
        yield
    except Refused:
        raise
    except Exception as error:
        # an AttributeError where a configuration is not that of a language model alone
        kinds = OSError | ValueError | KeyError | AttributeError | ImportError | SafetensorError
        expected = isinstance(error, kinds)
        if not expected and type(error) is not Exception:  # which is what tokenizers raises
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(key, given, allowed, f"It failed: {reason}") from error


def set_dropout(config: Any, dropout: float) -> None:
    """Give every dropout field of a Hugging Face configuration the same value."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, int | float) and value is not True:
            setattr(config, name, dropout)


MODELS: Registry[ModelSource] = Registry("model")
