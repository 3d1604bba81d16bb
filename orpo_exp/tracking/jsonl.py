"""metrics.jsonl: the numbers of a run as the run's folder keeps them. Always on, no component to choose."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from typing_extensions import override

from orpo_exp.files import write_atomically
from orpo_exp.tracking.base import RunInfo, Tracker, TrackerConfig

FILE = "metrics.jsonl"


class Jsonl(Tracker):
    """Appends one JSON object a line: `step`, `split`, `time` (seconds since 1970), then the metrics.

    Numbers keep all their digits. JSON knows no nan and no infinity: both are written as null.
    """

    essential = True

    def __init__(self) -> None:
        super().__init__(TrackerConfig())
        self._file: IO[str] | None = None

    @override
    def start(self, run: RunInfo) -> None:
        """Open the file, cut where the run goes on: the steps after its checkpoint are about to be written again."""
        path = run.folder / FILE
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if run.resumed_from else []
            kept = [line for line in lines if (record := parsed(line)) and record["step"] <= run.resumed_from]
            write_atomically(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    @override
    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Write and flush one line."""
        assert self._file is not None, "log() before start()"
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        record = {"step": step, "split": split, "time": time.time(), **finite}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    @override
    def flush(self) -> None:
        """Have every line outlast the machine."""
        assert self._file is not None, "flush() before start()"
        os.fsync(self._file.fileno())

    @override
    def finish(self, result: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path, split: str | None = None) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl by step, without duplicates. A null comes back as nan; no file means no records.

    split: what alone is looked for, None for everything. Of several records of one step and split the last counts. A
    line that a kill cut short is passed over.
    """
    records: dict[tuple[int, str], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if split is not None and f'"{split}"' not in line:  # most lines of a long run are not worth parsing
            continue
        if (record := parsed(line)) and split in (None, record["split"]):
            numbers = {name: math.nan if value is None else value for name, value in record.items()}
            records[record["step"], record["split"]] = numbers
    return sorted(records.values(), key=lambda record: record["step"])


def parsed(line: str) -> dict[str, Any] | None:
    """The record in a line; None for one that is torn."""
    try:
        record: dict[str, Any] = json.loads(line)
        return record if {"step", "split"} <= record.keys() else None
    except (ValueError, AttributeError):
        return None
