"""The plain layout: each answer in a row of its own behind its prompt, padded on the right."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from orpo_exp.layouts.base import LAYOUTS, Layout, Run, answers, score_index
from orpo_exp.types import Batch, Need, Span, TokenizedPair


@LAYOUTS.register("padded")
class Padded(Layout):
    """A pair's answers follow one another, each in a row.

    Padding is on the right, where a causal model's scored positions never look: no mask is needed, and which token
    pads makes no difference. A row's last token predicts nothing and is left out.
    """

    @override
    def collate(self, pairs: Sequence[TokenizedPair], needs: frozenset[Need]) -> Batch:
        """input_ids are (2 * pairs, longest row) int64; (4 * pairs, ...) with mismatched answers."""
        rows: list[Tensor] = []
        runs: dict[Span, list[Run]] = defaultdict(list)
        for pair in pairs:
            prompt = pair.prompt_ids
            runs[Span.prompt].append((len(rows), torch.arange(len(prompt) - 1), prompt[1:]))
            for span, answer in answers(pair, needs).items():
                first = len(prompt) - 1
                runs[span].append((len(rows), torch.arange(first, first + len(answer)), answer))
                rows.append(torch.cat([prompt, answer])[:-1].long())
        return Batch(
            inputs={"input_ids": pad_sequence(rows or [torch.zeros(1, dtype=torch.int64)], batch_first=True)},
            score=score_index(runs, needs),
            rows=tuple(pair.row for pair in pairs),
        )

    @override
    def computed(self, pairs: Sequence[TokenizedPair]) -> int:
        longest = max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) - 1 for p in pairs)
        return 2 * len(pairs) * longest
