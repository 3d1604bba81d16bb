"""A run's evaluation pair by pair, and the texts of the pairs, as they are read back from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

PAIRS = "pairs.parquet"
TEXTS = "held_out.parquet"
SAMPLES = "samples.json"
KEPT = "pairs/step-{:08d}.parquet"  # an evaluation's that is kept beside the latest one's
TEST_PAIRS, TEST_TEXTS = "test_pairs.parquet", "test.parquet"


@dataclass(frozen=True)
class PairTable:
    """What a pairs.parquet holds. step: of its evaluation. rows: (pairs,) of the data, ascending. prompts: the same
    text where prompts are the same. columns: every other column by name, (pairs,) numbers."""

    step: int
    rows: "numpy.ndarray"
    prompts: Sequence[str]
    columns: Mapping[str, "numpy.ndarray"]


def read_pairs(path: Path) -> PairTable | None:
    """What a file that PairFiles wrote holds, None where there is none."""
    from pyarrow import parquet

    if not path.exists():
        return None
    table = parquet.read_table(path)
    numbers = {name: table[name].to_numpy() for name in table.column_names if name not in ("row", "prompt")}
    return PairTable(int(table.schema.metadata[b"step"]), table["row"].to_numpy(), table["prompt"].to_pylist(), numbers)


def read_texts(path: Path) -> dict[int, tuple[str, str, str]]:
    """Prompt, chosen and rejected answer by row of what PairFiles wrote as TEXTS; nothing where there is no file."""
    from pyarrow import parquet

    if not path.exists():
        return {}
    table = parquet.read_table(path)
    row, prompt, chosen, rejected = (table[name].to_pylist() for name in ("row", "prompt", "chosen", "rejected"))
    return dict(zip(row, zip(prompt, chosen, rejected, strict=True), strict=True))
