"""What passes between the rooms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Message(TypedDict):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class PreferencePair:
    """A prompt and two answers to it, as text.

    A prompt is a plain string, or the turns of a conversation; then the answers are the assistant's next turn.
    `row` is the pair's place in its source, the number by which messages name it.
    """

    row: int
    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class TokenizedPair:
    """A preference pair as token ids, 1-D int32 tensors, truncated, answers with EOS; `row` as in PreferencePair.

    mismatched: the chosen and the rejected answer of another pair, where the loss asked for them.
    """

    row: int
    prompt_ids: Tensor
    chosen_ids: Tensor
    rejected_ids: Tensor
    mismatched: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """Tokens of the pair, its prompt counted once."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True)
class BuiltModel:
    """A Hugging Face causal LM on the CPU; what of it is trained requires a gradient.

    finish_logits: what the architecture does to the output of its head, (n, vocabulary) -> (n, vocabulary).
    save: writes it as Hugging Face's libraries load it. new_tokens: those whose embeddings the weights that it starts
    from have not.
    """

    model: "PreTrainedModel"
    finish_logits: Callable[[Tensor], Tensor]
    save: "Callable[[PreTrainedModel, Path], None]" = lambda model, folder: model.save_pretrained(folder)
    new_tokens: int = 0


@dataclass(frozen=True)
class Builder:
    """How to make a model; every call makes one of its own.

    whole: with its weights, the same at every call. Raises Refused where they cannot be read, or the architecture does
    something to its logits that is not known here.
    empty: the same model without them, to be filled: it takes memory only where something is written.
    """

    whole: Callable[[], BuiltModel]
    empty: Callable[[], BuiltModel]

    def __call__(self) -> BuiltModel:
        """With its weights."""
        return self.whole()


class Span(Enum):
    """The part of a pair that a scored token belongs to; the names are the fields of PairLogps."""

    chosen = 0
    rejected = 1
    prompt = 2
    mismatched_chosen = 3
    mismatched_rejected = 4


class Need(Enum):
    """What a loss may ask to be computed beyond the answers' log-probabilities."""

    prompt_logps = "log-probabilities of the prompt's own tokens"
    log_squared = "log of the summed squared probabilities at every scored token (WPO)"
    mismatched = "log-probabilities of another pair's answers to each prompt (KTO)"


@dataclass(frozen=True)
class ScoreIndex:
    """Which tokens are scored and where the hidden state lies that predicts each: n entries in the order of PairLogps.

    The entries run through the spans in the order chosen, rejected, prompt; within a span through the pairs; within a
    pair through its tokens.

    sequence, position: (n,) int64, the hidden state's place in the batch: which row of the inputs, and where in it.
    target: (n,) int64, the token it predicts.
    lengths: for each span a (pairs,) int64 tensor on the CPU, how many entries each pair has.
    log_squared: whether TokenLogps.log_squared is asked for.
    """

    sequence: Tensor
    position: Tensor
    target: Tensor
    lengths: dict[Span, Tensor]
    log_squared: bool = False


@dataclass(frozen=True)
class Segment:
    """A stretch of a row of inputs: a trunk, then branches that go on from it.

    trunk, branches: their lengths in tokens. A token sees what stands before it in the trunk and in its own branch, and
    nothing else of the row. A branch's positions go on where the trunk's end.
    """

    trunk: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class Segments:
    """What the tokens of a batch see, where that is not all that stands before them in their row: the segments of each
    row, one after another. What a row has behind its last one pads it."""

    rows: tuple[tuple[Segment, ...], ...]


@dataclass(frozen=True)
class Batch:
    """One micro-batch: the model's keyword arguments and what to score. It may hold no pair at all.

    inputs: tensors by name, (sequences, positions, ...).
    rows: its pairs' rows of the data, for messages.
    segments: what tokens see; None: all that stands before them in their row.
    """

    inputs: dict[str, Tensor]
    score: ScoreIndex
    rows: tuple[int, ...]
    segments: Segments | None = None

    def to_model(self, device: torch.device) -> dict[str, Any]:
        """What the model is called with, on its device."""
        inputs: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return inputs if self.segments is None else {**inputs, "segments": self.segments}


@dataclass(frozen=True)
class TokenLogps:
    """Log-probabilities of the scored tokens of one span, ragged: pair after pair, no padding.

    values: (tokens,) float32, with gradient where the pass had one.
    lengths: (pairs,) int64.
    log_squared: (tokens,) float32 without gradient, log sum_v p(v)^2 over the vocabulary at each token; only where the
        loss asked for it.

    Sums are taken in float64: the losses work in double precision, which costs nothing at one number per pair.
    """

    values: Tensor
    lengths: Tensor
    log_squared: Tensor | None = None

    def sum(self) -> Tensor:
        """Log-probability of each whole answer, (pairs,) float64; 0 where a pair has no scored token."""
        values = self.values.double()
        if not len(self.lengths):  # segment_reduce refuses an empty batch
            return values
        return torch.segment_reduce(values, "sum", lengths=self.lengths.to(values.device), initial=0.0)

    def mean(self) -> Tensor:
        """Mean log-probability per token of each answer, (pairs,) float64; 0 where a pair has no scored token."""
        return self.sum() / self.lengths.clamp(min=1).to(self.values.device)

    def tokens(self) -> list[Tensor]:
        """Each pair's log-probabilities, token by token."""
        return list(self.values.split(self.lengths.tolist()))

    def slice(self, first: int, last: int) -> "TokenLogps":
        """The pairs first .. last - 1."""
        return self.select(torch.arange(first, last))

    def select(self, places: Tensor) -> "TokenLogps":
        """The pairs at these places, (n,) int64, in this order."""
        lengths = self.lengths[places]
        starts = (self.lengths.cumsum(0) - self.lengths)[places]
        shift = starts - (lengths.cumsum(0) - lengths)  # from a token's place in the selection to its place here
        tokens = (torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)).to(self.values.device)
        squared = None if self.log_squared is None else self.log_squared[tokens]
        return TokenLogps(self.values[tokens], lengths, squared)

    def to(self, device: torch.device) -> "TokenLogps":
        """The same on another device."""
        squared = None if self.log_squared is None else self.log_squared.to(device)
        return TokenLogps(self.values.to(device), self.lengths, squared)

    @staticmethod
    def concatenate(parts: Sequence["TokenLogps"]) -> "TokenLogps":
        """The pairs of several parts, one after another."""
        values, lengths = torch.cat([p.values for p in parts]), torch.cat([p.lengths for p in parts])
        squared = [p.log_squared for p in parts if p.log_squared is not None]
        return TokenLogps(values, lengths, torch.cat(squared) if squared else None)


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of every scored token of each pair: the one door between computing and mathematics.

    chosen, rejected: the two answers.
    prompt: the prompt's own tokens; mismatched_chosen, mismatched_rejected: the answers of the next pair of the global
        batch to this pair's prompt. Each is there only where the loss asked for it.
    """

    chosen: TokenLogps
    rejected: TokenLogps
    prompt: TokenLogps | None = None
    mismatched_chosen: TokenLogps | None = None
    mismatched_rejected: TokenLogps | None = None

    @staticmethod
    def concatenate(parts: Sequence["PairLogps"]) -> "PairLogps":
        """The pairs of several micro-batches, one after another."""
        spans = [part.by_span() for part in parts]
        return PairLogps.from_spans({s: TokenLogps.concatenate([of[s] for of in spans]) for s in spans[0]})

    def slice(self, first: int, last: int) -> "PairLogps":
        """The pairs first .. last - 1."""
        return PairLogps.from_spans({span: logps.slice(first, last) for span, logps in self.by_span().items()})

    def select(self, places: Tensor) -> "PairLogps":
        """The pairs at these places, (n,) int64, in this order."""
        return PairLogps.from_spans({span: logps.select(places) for span, logps in self.by_span().items()})

    def to(self, device: torch.device) -> "PairLogps":
        """The same on another device."""
        return PairLogps.from_spans({span: logps.to(device) for span, logps in self.by_span().items()})

    @staticmethod
    def from_spans(spans: Mapping[Span, TokenLogps]) -> "PairLogps":
        """The reverse of `by_span`."""
        return PairLogps(**{span.name: logps for span, logps in spans.items()})

    def by_span(self) -> dict[Span, TokenLogps]:
        """Every part that is there, by the span it belongs to."""
        parts = {span: getattr(self, span.name) for span in Span}
        return {span: logps for span, logps in parts.items() if logps is not None}


@dataclass(frozen=True)
class Counts:
    """What a loss divides by: pairs and scored tokens of the whole global batch (or evaluation set), over all ranks."""

    pairs: int
    chosen_tokens: int
    rejected_tokens: int
    prompt_tokens: int

    @staticmethod
    def of(pairs: Sequence[TokenizedPair]) -> "Counts":
        """Count a batch. A prompt's first token has nothing before it to be predicted from: it is never scored."""
        return Counts(
            pairs=len(pairs),
            chosen_tokens=sum(len(p.chosen_ids) for p in pairs),
            rejected_tokens=sum(len(p.rejected_ids) for p in pairs),
            prompt_tokens=sum(max(len(p.prompt_ids) - 1, 0) for p in pairs),
        )


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns for the pairs it was given.

    loss: () float64 with gradient, the share of these pairs in the loss of the global batch.
    terms: named parts of the loss, () float64 each, already divided by the global counts: summed over micro-batches and
        ranks they are the term of the global batch.
    per_pair: metrics with one number per pair, (pairs,) float64 each; their mean over all pairs is reported.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    per_pair: dict[str, Tensor] = field(default_factory=dict)
