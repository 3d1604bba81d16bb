"""metrics.jsonl: the numbers of a run as the run's folder keeps them. Always on, no component to choose."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from orpo_exp.tracking.base import RunInfo, Tracker, TrackerConfig

FILE = "metrics.jsonl"


class Jsonl(Tracker):
    """Appends one JSON object a line: `step`, `split`, `time` (seconds since 1970), then the metrics.

    Numbers keep all their digits. JSON knows no nan and no infinity: both are written as null.
    """

    def __init__(self) -> None:
        super().__init__(TrackerConfig())
        self._file: IO[str] | None = None

    def start(self, run: RunInfo) -> None:
        """Open the file. What an earlier part of the run wrote stays."""
        path = run.folder / FILE
        torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("a", encoding="utf-8")
        if torn:  # the run was killed in the middle of a line: the next one must not grow onto it
            self._file.write("\n")

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Write and flush one line."""
        assert self._file is not None, "log() before start()"
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        record = {"step": step, "split": split, "time": time.time(), **finite}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl by step, without duplicates. A null comes back as nan; no file means no records.

    A resumed run repeats the steps after its last checkpoint: of several records of one step and split the last counts.
    A line that a kill cut short is passed over.
    """
    records: dict[tuple[int, str], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            key = record["step"], record["split"]
        except (ValueError, TypeError, KeyError):
            continue
        records[key] = {name: math.nan if value is None else value for name, value in record.items()}
    return sorted(records.values(), key=lambda record: record["step"])
