"""What a data source is: something that yields preference pairs as text, split into training and held-out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor
from typing_extensions import override

from orpo_exp.data.texts import Texts
from orpo_exp.data.views import View
from orpo_exp.registry import Registry
from orpo_exp.schema import ConfigError, Settings, setting
from orpo_exp.types import PreferencePair

PLAIN = "plain"  # the chat template that names the speaker before each turn
IN_EVALUATION = "in the evaluation data: "  # begins the reasons why rows of the evaluation set are skipped
IN_TEST = "in the test data: "  # and those of the test set


@dataclass
class DataConfig(Settings):
    """Settings every source has; lengths in tokens. whole_text: whether prompt and answer are tokenized as one text.
    chat_template: that of conversations, a file or PLAIN; None: the tokenizer's own, or where it has none PLAIN.
    split_seed: what decides on the data in the seed's place, so that runs of other seeds are held to the same pairs."""

    max_length: int = setting(1024, ge=3)
    min_prompt_length: int = setting(256, ge=1)
    whole_text: bool = setting(False, as_before=False)
    chat_template: str | None = setting(None, as_before=None)
    split_seed: int | None = setting(None, ge=0, lt=2**31, as_before=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat_template not in (None, PLAIN) and not Path(str(self.chat_template)).expanduser().is_file():
            allowed = f"null, {PLAIN}, or a file that exists, with a Jinja template"
            raise ConfigError("chat_template", self.chat_template, allowed, "Check the path.")
        if self.min_prompt_length > self.max_length - 2:
            allowed = f"at most max_length - 2 = {self.max_length - 2}"
            do = "Lower it or raise max_length: an answer needs room for a token and its EOS."
            raise ConfigError("min_prompt_length", self.min_prompt_length, allowed, do)

    @property
    def lengths(self) -> "Lengths":
        """Which pairs are used by their length: all."""
        return Lengths()

    def split_by(self, seed: int) -> int:
        """What decides which pairs are held out, in a run of this seed."""
        return seed if self.split_seed is None else self.split_seed


@dataclass(frozen=True)
class Lengths:
    """How many tokens a used pair has before anything is cut, EOS and what begins every text aside; None: any number.

    longest: its prompt and the longer answer together, at most. longest_prompt: its prompt, at most. shortest_answer:
    the shorter answer, at least.
    """

    longest: int | None = None
    longest_prompt: int | None = None
    shortest_answer: int | None = None

    def refused(self, prompt: int, chosen: int, rejected: int) -> str | None:
        """Why a pair with parts of such lengths is not used; None where it is."""
        if self.longest is not None and prompt + max(chosen, rejected) > self.longest:
            return f"longer than data.longest={self.longest} tokens"
        if self.longest_prompt is not None and prompt > self.longest_prompt:
            return f"a prompt longer than data.longest_prompt={self.longest_prompt} tokens"
        if self.shortest_answer is not None and min(chosen, rejected) < self.shortest_answer:
            return f"an answer shorter than data.shortest_answer={self.shortest_answer} tokens"
        return None


@dataclass
class FiniteConfig(DataConfig):
    """Settings of sources that end. eval_size: held out, below 1 a share of the pairs, from 1 on a number. test_size:
    kept for the test in the same way; None: no test. deduplicate: use one of equal pairs. longest, longest_prompt,
    shortest_answer: see Lengths. cache: where pairs and tokens are kept, see Kept."""

    eval_size: float = setting(0.1, gt=0)
    test_size: float | None = setting(None, gt=0, as_before=None)
    deduplicate: bool = setting(False, as_before=False)
    longest: int | None = setting(None, ge=2, as_before=None)
    longest_prompt: int | None = setting(None, ge=1, as_before=None)
    shortest_answer: int | None = setting(None, ge=1, as_before=None)
    cache: str | None = setting(None, affects_numbers=False)

    @property
    @override
    def lengths(self) -> Lengths:
        return Lengths(self.longest, self.longest_prompt, self.shortest_answer)


class Pairs(Protocol):
    """Training pairs by position: a list of them, or an endless source that makes them."""

    def __getitem__(self, position: int, /) -> PreferencePair: ...


@dataclass(frozen=True)
class KeptData:
    """Pairs on disk. train, held_out, test: (n,) int64, positions in the texts, one part behind the other."""

    texts: Sequence[Texts]
    train: Tensor
    held_out: Tensor
    test: Tensor


@dataclass(frozen=True)
class SourceData:
    """What a source loads.

    train: pairs by position, 0 .. size - 1; size None means endless.
    held_out: the evaluation set, disjoint from `train`. test: the test set, disjoint from both; often none.
    skipped: reason -> row numbers of the rows that cannot be used; those in evaluation and test data begin with
    IN_EVALUATION and IN_TEST.
    form: how the rows came, for people; empty where there are none.
    kept: where both are on disk, so that their tokens are kept as well.
    """

    train: Pairs
    size: int | None
    held_out: Sequence[PreferencePair]
    skipped: dict[str, list[int]] = field(default_factory=dict)
    form: str = ""
    kept: KeptData | None = None
    test: Sequence[PreferencePair] = ()

    @staticmethod
    def of_kept(kept: KeptData, skipped: dict[str, list[int]], form: str) -> "SourceData":
        """That of pairs on disk."""
        train, held_out, test = (View(kept.texts, of) for of in (kept.train, kept.held_out, kept.test))
        return SourceData(train, len(train), held_out, skipped, form, kept, test)


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
        """Read or make the pairs; the run's `seed`, or `split_seed` in its place, decides what is held out.

        Raises Refused for a source that does not exist, cannot be read or has no usable row.
        """

    def whole(self, seed: int) -> SourceData:
        """All pairs of a source that ends as those that are held out, whatever is trained on; of an endless one those
        that it holds out."""
        return self.load(seed)


DATA: Registry[Source] = Registry("data")
