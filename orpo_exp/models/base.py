"""What a model source is, and what every causal LM gets on its way in: dropout, checkpointing, a checked head."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from orpo_exp.registry import Registry
from orpo_exp.schema import Settings, setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Attention(Enum):
    """The attention kernel, by Hugging Face's names."""

    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


@dataclass
class ModelConfig(Settings):
    """Settings every model has."""

    dropout: float = setting(0.0, ge=0, lt=1)
    attention: Attention = Attention.sdpa
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A policy ready to be trained.

    model: a Hugging Face causal LM.
    tokenizer: fast, with an EOS token.
    finish_logits: what the architecture does to the output of its head, (n, vocabulary) -> (n, vocabulary).
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    finish_logits: Callable[[Tensor], Tensor]


class ModelSource(ABC):
    """Loads or makes the policy and its tokenizer.

    suited_lr: a peak learning rate of Adam that suits weights of this origin, used where none is given.
    """

    Config: ClassVar[type[ModelConfig]]
    suited_lr: ClassVar[float]

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def check(self) -> None:
        """Refuse with ValueError what can be refused without loading anything."""
        return None

    @abstractmethod
    def tokenizer(self, texts: Iterable[str]) -> "PreTrainedTokenizerBase":
        """The tokenizer; `texts` are the data's own, for one that is trained on them."""

    @abstractmethod
    def model(self, tokenizer: "PreTrainedTokenizerBase", seed: int) -> "PreTrainedModel":
        """The causal LM in float32 unless configured otherwise, on the CPU; `seed` draws random weights."""

    def load(self, texts: Iterable[str], seed: int) -> LoadedModel:
        """The policy and its tokenizer, checked.

        Raises ValueError where the vocabulary is too small for the tokenizer, or the architecture does something to its
        logits that is not known here.
        """
        from orpo_exp.models.head import check_model, finish_logits

        self.check()
        tokenizer = self.tokenizer(texts)
        model = self.model(tokenizer, seed)
        if self.config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        finish = finish_logits(model.config)
        check_model(model, finish)
        return LoadedModel(model, tokenizer, finish)


def set_dropout(config: Any, dropout: float) -> None:
    """Give every dropout field of a Hugging Face configuration the same value."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, int | float) and value is not True:
            setattr(config, name, dropout)


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in model.parameters())


MODELS: Registry[ModelSource] = Registry("model")
