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
        answers = {(Span.chosen, Span.rejected): [(p.chosen_ids, p.rejected_ids) for p in pairs]}
        if Need.mismatched in needs:
            mismatched = [p.mismatched for p in pairs if p.mismatched is not None]
            answers[Span.mismatched_chosen, Span.mismatched_rejected] = mismatched

        sequences: list[Tensor] = []
        spans: dict[Span, list[tuple[int, int, Tensor]]] = {span: [] for both in answers for span in both}
        for both, of_pairs in answers.items():
            for pair, of_pair in zip(pairs, of_pairs, strict=True):
                for span, answer in zip(both, of_pair, strict=True):
                    spans[span].append((len(sequences), len(pair.prompt_ids) - 1, answer))
                    sequences.append(torch.cat([pair.prompt_ids, answer])[:-1].long())
        if Need.prompt_logps in needs:
            spans[Span.prompt] = [(2 * i, 0, p.prompt_ids[1:]) for i, p in enumerate(pairs)]
        return Batch(
            inputs={"input_ids": pad_sequence(sequences or [torch.zeros(1, dtype=torch.int64)], batch_first=True)},
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
