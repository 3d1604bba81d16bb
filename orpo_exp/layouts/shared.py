"""Layouts whose rows hold more than one text: a prompt stands once before all of its answers, pairs behind one another.

What a token sees is said by `types.Segments`; the model's attention does it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from orpo_exp.layouts.base import LAYOUTS, Answers, Layout, LayoutConfig, Run, answers, score_index
from orpo_exp.types import Batch, Need, Segment, Segments, Span, TokenizedPair


@LAYOUTS.register("shared_prefix")
class SharedPrefix(Layout):
    """A row for each pair: its prompt, once, and behind it the chosen and the rejected answer, then mismatched ones.

    The answers are blind to one another, and the positions of each go on after the prompt. An answer's last token
    predicts nothing and is left out; the prompt's last one predicts the first of every answer.
    """

    several_texts = True

    @override
    def collate(self, pairs: Sequence[TokenizedPair], needs: frozenset[Need]) -> Batch:
        """input_ids and position_ids are (pairs, longest row) int64."""
        return _batch([[pair] for pair in pairs], needs, share=True)

    @override
    def computed(self, pairs: Sequence[TokenizedPair]) -> int:
        return len(pairs) * max(pair.length - 2 for pair in pairs)


@LAYOUTS.register("packed")
class Packed(Layout):
    """All pairs in one row, without padding."""

    several_texts = True

    @dataclass
    class Config(LayoutConfig):
        """share_prefix: whether a prompt stands once before its answers, or before each."""

        share_prefix: bool = True

    config: Config

    @override
    def collate(self, pairs: Sequence[TokenizedPair], needs: frozenset[Need]) -> Batch:
        """input_ids and position_ids are (1, tokens) int64."""
        return _batch([pairs] if pairs else [], needs, self.config.share_prefix)

    @override
    def computed(self, pairs: Sequence[TokenizedPair]) -> int:
        again = 0 if self.config.share_prefix else sum(len(pair.prompt_ids) for pair in pairs)
        return again + sum(pair.length - 2 for pair in pairs)


@dataclass
class _Row:
    """A row that is being written: what its tokens are, where each stands in its text, and how they hang together."""

    number: int
    tokens: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    length: int = 0

    def add(self, prompt: Tensor, of: Answers, runs: dict[Span, list[Run]]) -> None:
        """Write a prompt and the answers behind it."""
        last = self.length + len(prompt) - 1  # the prompt's last token
        self._write(prompt, 0)
        for span, answer in of.items():
            rest = torch.arange(self.length, self.length + len(answer) - 1)
            runs[span].append((self.number, torch.cat([torch.tensor([last]), rest]), answer))
            self._write(answer[:-1], len(prompt))
        self.segments.append(Segment(len(prompt), tuple(len(answer) - 1 for answer in of.values())))

    def _write(self, tokens: Tensor, position: int) -> None:
        self.tokens.append(tokens.long())
        self.positions.append(torch.arange(position, position + len(tokens)))
        self.length += len(tokens)


def _batch(pairs: Sequence[Sequence[TokenizedPair]], needs: frozenset[Need], share: bool) -> Batch:
    """The batch of some rows, each given by its pairs."""
    runs: dict[Span, list[Run]] = defaultdict(list)
    rows: list[_Row] = []
    for number, of_row in enumerate(pairs):
        row = _Row(number)
        for pair in of_row:
            texts, prompt = answers(pair, needs), pair.prompt_ids
            runs[Span.prompt].append((number, torch.arange(row.length, row.length + len(prompt) - 1), prompt[1:]))
            for of in [texts] if share else [{span: answer} for span, answer in texts.items()]:
                row.add(prompt, of, runs)
        rows.append(row)
    nothing = [torch.zeros(1, dtype=torch.int64)]
    return Batch(
        inputs={
            "input_ids": pad_sequence([torch.cat(row.tokens) for row in rows] or nothing, batch_first=True),
            "position_ids": pad_sequence([torch.cat(row.positions) for row in rows] or nothing, batch_first=True),
        },
        score=score_index(runs, needs),
        rows=tuple(pair.row for of_row in pairs for pair in of_row),
        segments=Segments(tuple(tuple(row.segments) for row in rows) or ((),)),
    )
