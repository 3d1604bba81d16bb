"""What a data source is: something that yields preference pairs as text, split into training and held-out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from orpo_exp.registry import Registry
from orpo_exp.schema import ConfigError, Settings, setting
from orpo_exp.types import PreferencePair

PLAIN = "plain"  # the chat template that names the speaker before each turn
IN_EVALUATION = "in the evaluation data: "  # begins the reasons why rows of the evaluation set are skipped


@dataclass
class DataConfig(Settings):
    """Settings every source has; lengths in tokens. whole_text: whether prompt and answer are tokenized as one text.
    chat_template: that of conversations, a file or PLAIN; None: the tokenizer's own, or where it has none PLAIN."""

    max_length: int = setting(1024, ge=3)
    min_prompt_length: int = setting(256, ge=1)
    whole_text: bool = setting(False, as_before=False)
    chat_template: str | None = setting(None, as_before=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat_template not in (None, PLAIN) and not Path(str(self.chat_template)).expanduser().is_file():
            allowed = f"null, {PLAIN}, or a file that exists, with a Jinja template"
            raise ConfigError("chat_template", self.chat_template, allowed, "Check the path.")
        if self.min_prompt_length > self.max_length - 2:
            allowed = f"at most max_length - 2 = {self.max_length - 2}"
            do = "Lower it or raise max_length: an answer needs room for a token and its EOS."
            raise ConfigError("min_prompt_length", self.min_prompt_length, allowed, do)


class Pairs(Protocol):
    """Training pairs by position: a list of them, or an endless source that makes them."""

    def __getitem__(self, position: int, /) -> PreferencePair: ...


@dataclass(frozen=True)
class SourceData:
    """What a source loads.

    train: pairs by position, 0 .. size - 1; size None means endless.
    held_out: the evaluation set, disjoint from `train`.
    skipped: reason -> row numbers of the rows that cannot be used; reasons in evaluation data begin with IN_EVALUATION.
    form: how the rows came, for people; empty where there are none.
    """

    train: Pairs
    size: int | None
    held_out: Sequence[PreferencePair]
    skipped: dict[str, list[int]] = field(default_factory=dict)
    form: str = ""


class Source(ABC):
    """A data source. `load` is deterministic: every rank calls it and must get the same pairs in the same order.

    endless: it makes training pairs for as long as asked, and has no epochs.
    """

    Config: ClassVar[type[DataConfig]]
    endless: ClassVar[bool] = False

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    @abstractmethod
    def load(self, seed: int) -> SourceData:
        """Read or make the pairs; `seed` decides what is held out.

        Raises Refused for a source that does not exist, cannot be read or has no usable row.
        """


DATA: Registry[Source] = Registry("data")
