"""What an evaluation comes to, pair by pair: a table with a row for each held-out pair."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from orpo_exp.columns import column
from orpo_exp.files import written_beside
from orpo_exp.pair_tables import KEPT, PAIRS, TEXTS, read_pairs
from orpo_exp.plugins import Ranks
from orpo_exp.training.objectives import gather_rows
from orpo_exp.training.samples import prompt_text
from orpo_exp.training.sharing import Share
from orpo_exp.types import LossOutput, PairLogps, PreferencePair

SHOWN = 600  # characters of a prompt or an answer that are kept as text, to be looked at


@dataclass(frozen=True)
class PairResults:
    """rows: (pairs,) int64, of the data, ascending. metrics: by name (pairs,) float64, those of which an evaluation
    reports the means. logps: of each part that was scored (pairs,) float64, the log-probability of all its tokens;
    tokens: (pairs,) int64, how many these are."""

    step: int
    rows: Tensor
    metrics: Mapping[str, Tensor]
    logps: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor]


def gathered(step: int, ranks: Ranks, share: Share, output: LossOutput, logps: PairLogps) -> PairResults:
    """All replicas' pairs, on every rank, which all call it. logps: of this replica's pairs. output: of the same; with
    scope `batch` the first replica's has all pairs, in the order of the replicas, and the others' none."""
    rows = gather_rows(ranks, share.pairs)
    order = rows.argsort()

    def whole(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.cat(ranks.gather(of.cpu()))[order] for name, of in own.items()}

    spans = {span.name: of for span, of in logps.by_span().items()}
    sums, tokens = {name: of.sum() for name, of in spans.items()}, {name: of.lengths for name, of in spans.items()}
    return PairResults(step, rows[order], whole(output.per_pair), whole(sums), whole(tokens))


class PairFiles:
    """Writes an evaluation's results pair by pair, pairs.parquet, which is always that of the latest one.

    texts: all held-out pairs. kept: of which steps an evaluation's are kept as well, as pairs/step-00000050.parquet.
    names: of the two files.

    Columns: `row` of the data; `prompt`, 16 hexadecimal digits that are the same where prompts are; the metrics by
    their names; `chosen_logp` and `chosen_tokens`, the sum of so many tokens' log-probabilities, and so on for each
    part that was scored. Beside it lies held_out.parquet with the texts: `row`, and of `prompt`, of which the end is
    kept, `chosen` and `rejected` at most SHOWN characters.
    """

    def __init__(
        self,
        folder: Path,
        texts: Sequence[PreferencePair],
        kept: Callable[[int], bool] = lambda step: False,
        names: tuple[str, str] = (PAIRS, TEXTS),
    ) -> None:
        self.folder, self.texts, self.kept = folder, texts, kept
        self.pairs, self.shown = (folder / name for name in names)

    def write(self, results: PairResults) -> None:
        """Replace the file at once."""
        import pyarrow
        from pyarrow import parquet

        rows = results.rows.tolist()
        columns = {"row": column(rows, pyarrow.int64())}
        columns["prompt"] = column([self._prompts[row] for row in rows], pyarrow.string())
        for name, of in results.tokens.items():
            columns[f"{name}_tokens"] = column(of.tolist(), pyarrow.int64())
            columns[f"{name}_logp"] = column(results.logps[name].tolist(), pyarrow.float64())
        columns |= {name: column(of.tolist(), pyarrow.float64()) for name, of in results.metrics.items()}
        table = pyarrow.table(columns).replace_schema_metadata({"step": str(results.step)})
        if not self.shown.exists():
            self._write_texts()
        paths = [self.pairs]
        if self.kept(results.step):
            paths.append(self.folder / KEPT.format(results.step))
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            with written_beside(path) as beside:
                parquet.write_table(table, beside)

    def most_wrong(self, count: int) -> list[tuple[PreferencePair, float]]:
        """Of the latest evaluation's pairs with a negative margin the worst, with it."""
        table = read_pairs(self.pairs)
        assert table is not None
        margins = sorted(zip(table.columns["rewards/margin"].tolist(), table.rows.tolist(), strict=True))[:count]
        texts = {pair.row: pair for pair in self.texts}
        return [(texts[row], margin) for margin, row in margins if margin < 0]

    def _write_texts(self) -> None:
        import pyarrow
        from pyarrow import parquet

        shown = [
            (pair.row, ended(prompt_text(pair)), begun(pair.chosen), begun(pair.rejected))
            for pair in sorted(self.texts, key=lambda pair: pair.row)
        ]
        kinds = {"row": pyarrow.int64()} | dict.fromkeys(("prompt", "chosen", "rejected"), pyarrow.string())
        columns = [list(of) for of in zip(*shown, strict=True)]
        table = pyarrow.table({name: column(of, kinds[name]) for name, of in zip(kinds, columns, strict=True)})
        with written_beside(self.shown) as beside:
            parquet.write_table(table, beside, compression="zstd")

    @cached_property
    def _prompts(self) -> dict[int, str]:
        return {pair.row: hashlib.sha256(str(pair.prompt).encode()).hexdigest()[:16] for pair in self.texts}


def begun(text: str) -> str:
    """The text, of a long one its beginning."""
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def ended(text: str) -> str:
    """The text, of a long one its end."""
    return text if len(text) <= SHOWN else "…" + text[1 - SHOWN :]
