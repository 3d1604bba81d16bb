"""What a layout is: the way several pairs become the inputs of one forward pass."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from orpo_exp.registry import Registry
from orpo_exp.schema import ConfigError, Settings
from orpo_exp.types import Batch, Need, ScoreIndex, Span, TokenizedPair

Run = tuple[int, Tensor, Tensor]  # scored tokens: a row, the positions in it that predict them, the tokens
Answers = dict[Span, Tensor]


@dataclass
class LayoutConfig(Settings):
    """Base of every layout's configuration."""


class Layout(ABC):
    """Turns pairs into model inputs and says which positions are scored. Layouts change the speed, never a number.

    several_texts: whether a row holds more than one text; the batches then have `segments`.
    """

    several_texts: ClassVar[bool] = False
    Config: ClassVar[type[LayoutConfig]] = LayoutConfig

    def __init__(self, config: LayoutConfig) -> None:
        self.config = config

    def cost(self, pair: TokenizedPair) -> int:
        """What a pair costs to compute, in tokens: pairs of like cost share a micro-batch."""
        return pair.length

    def settled(self, sample: Sequence[TokenizedPair], one_text_a_row: str | None) -> tuple["Layout", str]:
        """The layout that is used in its place, and why, for people.

        sample: some pairs, one at least, as there will be more. one_text_a_row: why the model carries no more, if it
        does not. Raises ConfigError where this layout then cannot be used.
        """
        if self.several_texts and one_text_a_row:
            allowed = f"auto or padded, for a row can hold one text only: {one_text_a_row}"
            raise ConfigError("layout", LAYOUTS.name(self), allowed, "Choose layout=auto.")
        return self, "as was asked for"

    @abstractmethod
    def collate(self, pairs: Sequence[TokenizedPair], needs: frozenset[Need]) -> Batch:
        """One micro-batch. Without any pair it is a batch that the model can run and in which nothing is scored: ranks
        must run equally many micro-batches, and a short last batch may not have a pair for each."""

    @abstractmethod
    def computed(self, pairs: Sequence[TokenizedPair]) -> int:
        """How many positions a micro-batch of these pairs, one at least, is computed for, padding among them."""


def answers(pair: TokenizedPair, needs: frozenset[Need]) -> Answers:
    """The answers to a pair's prompt that are to be scored, in the order of their spans."""
    found: Answers = {Span.chosen: pair.chosen_ids, Span.rejected: pair.rejected_ids}
    if Need.mismatched in needs and pair.mismatched is not None:
        found |= {Span.mismatched_chosen: pair.mismatched[0], Span.mismatched_rejected: pair.mismatched[1]}
    return found


def score_index(runs: Mapping[Span, Sequence[Run]], needs: frozenset[Need]) -> ScoreIndex:
    """The index of each span's runs of tokens, of which every pair has one."""
    order = [Span.chosen, Span.rejected]
    order += [Span.prompt] if Need.prompt_logps in needs else []
    order += [Span.mismatched_chosen, Span.mismatched_rejected] if Need.mismatched in needs else []
    whole = [run for span in order for run in runs.get(span, ())]
    nothing = torch.zeros(0, dtype=torch.int64)
    return ScoreIndex(
        sequence=torch.cat([nothing, *(torch.full((len(tokens),), row) for row, _, tokens in whole)]),
        position=torch.cat([nothing, *(positions for _, positions, _ in whole)]),
        target=torch.cat([nothing, *(tokens.long() for _, _, tokens in whole)]),
        lengths={span: torch.tensor([len(of[2]) for of in runs.get(span, ())], dtype=torch.int64) for span in order},
        log_squared=Need.log_squared in needs,
    )


LAYOUTS: Registry[Layout] = Registry("layout")
