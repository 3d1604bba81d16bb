"""The plain layout: each answer in a sequence of its own behind its prompt, padded on the right."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from orpo_exp.layouts.base import LAYOUTS, Layout
from orpo_exp.types import Batch, Need, ScoreIndex, Span, TokenizedPair


@LAYOUTS.register("padded")
class Padded(Layout):
    """Sequences 2i and 2i + 1 hold the chosen and the rejected answer of pair i; behind all of these, where they are
    asked for, the mismatched answers in the same order.

    Padding is on the right, where a causal model's scored positions never look: no mask is needed, and which token
    pads makes no difference. A sequence's last token predicts nothing and is left out.
    """

    @override
    def collate(self, pairs: Sequence[TokenizedPair], needs: frozenset[Need]) -> Batch:
        """input_ids are (2 * pairs, longest sequence) int64; (4 * pairs, ...) with mismatched answers."""
        answers = {Span.chosen: [p.chosen_ids for p in pairs], Span.rejected: [p.rejected_ids for p in pairs]}
        first = {Span.chosen: 0, Span.rejected: 1}
        if Need.mismatched in needs:
            mismatched = [p.mismatched for p in pairs if p.mismatched is not None]
            answers[Span.mismatched_chosen] = [chosen for chosen, _ in mismatched]
            answers[Span.mismatched_rejected] = [rejected for _, rejected in mismatched]
            first |= {Span.mismatched_chosen: 2 * len(pairs), Span.mismatched_rejected: 2 * len(pairs) + 1}

        sequences = [torch.zeros(1, dtype=torch.int64)] * max(1, len(pairs) * len(answers))
        spans: dict[Span, list[tuple[int, int, Tensor]]] = {}
        for span, of_span in answers.items():
            spans[span] = []
            for i, (pair, answer) in enumerate(zip(pairs, of_span, strict=True)):
                place = first[span] + 2 * i
                sequences[place] = torch.cat([pair.prompt_ids, answer])[:-1].long()
                spans[span].append((place, len(pair.prompt_ids) - 1, answer))
        if Need.prompt_logps in needs:
            spans[Span.prompt] = [(2 * i, 0, p.prompt_ids[1:]) for i, p in enumerate(pairs)]
        return Batch(
            inputs={"input_ids": pad_sequence(sequences, batch_first=True)},
            score=_index(spans, log_squared=Need.log_squared in needs),
            rows=tuple(pair.row for pair in pairs),
        )


def _index(spans: dict[Span, list[tuple[int, int, Tensor]]], log_squared: bool) -> ScoreIndex:
    """The index of runs of tokens, each given as (sequence, position that predicts its first token, its tokens)."""
    runs = [run for of_span in spans.values() for run in of_span]
    nothing = torch.zeros(0, dtype=torch.int64)
    return ScoreIndex(
        sequence=torch.cat([nothing, *(torch.full((len(tokens),), place) for place, _, tokens in runs)]),
        position=torch.cat([nothing, *(torch.arange(start, start + len(tokens)) for _, start, tokens in runs)]),
        target=torch.cat([nothing, *(tokens.long() for _, _, tokens in runs)]),
        lengths={
            span: torch.tensor([len(tokens) for _, _, tokens in of_span], dtype=torch.int64)
            for span, of_span in spans.items()
        },
        log_squared=log_squared,
    )
