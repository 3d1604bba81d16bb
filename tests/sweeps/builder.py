"""Folders of sweeps as runs leave them, with numbers that a test chooses."""

import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from orpo_exp.metrics import LOGPS, LOSS, REWARDS, TRAINING, Direction, Metric, to_json
from orpo_exp.sweeps.sweep_file import Sweep, SweepPoint, write_sweep

NLL = Metric("negative log-likelihood", "nats per token", Direction.min)
DECLARED = {"loss": LOSS, "nll_loss": NLL, **REWARDS, **LOGPS, **TRAINING}
# accuracy by lambda and seed: means 0.5, 0.7, 0.6; differences of the best two 0.1, 0.1, 0.1 + noise
ACCURACY = {"0": (0.49, 0.50, 0.51), "0.1": (0.69, 0.70, 0.71), "1.0": (0.57, 0.60, 0.63)}
DEAD = 2**22 + 1  # above the largest process number that Linux gives


def result(status: str = "completed", **values: Any) -> dict[str, Any]:
    """What result.json says of a run on this machine."""
    return {
        "status": status, "error": None, "config_hash": "0123456789abcdef", "overrides": [], "seed": 0,
        "hardware": {"cores": 2, "gpus": []}, "world_size": 1, "steps": 100, "total_steps": 100, "eval": {},
        "wall_time_seconds": 60.0, "requeues": 0, "heartbeat": time.time(), "host": socket.gethostname(),
        "pid": os.getpid(), "job_id": None,
    } | values  # fmt: skip


def make_run(
    folder: Path,
    metrics: Mapping[str, float | None],
    config: Mapping[str, Any] | None = None,
    evaluations: Sequence[Mapping[str, Any]] = (),
    declared: Mapping[str, Metric] | None = None,
    **values: Any,
) -> Path:
    """A run's folder with its final metrics, its config.yaml, its evaluations, what it says that its metrics are (None:
    nothing, as before version 0.2), and other values of result.json."""
    folder.mkdir(parents=True)
    if declared is not None:
        values["metrics"] = to_json(declared)
    (folder / "result.json").write_text(json.dumps(result(**{"eval": dict(metrics)} | values)))
    if config is not None:
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    lines = [json.dumps({"split": "eval", "time": 0.0, **record}) + "\n" for record in evaluations]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def make_pairs(
    run: Path,
    columns: Mapping[str, Sequence[float]],
    rows: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    step: int = 100,
    file: str = "pairs.parquet",
) -> None:
    """A run's pairs.parquet: rows 0, 1, 2, ... with a prompt each, unless others are given; prompts are any words."""
    rows = range(len(next(iter(columns.values())))) if rows is None else rows
    words = [f"prompt {row}" for row in rows] if prompts is None else prompts
    digests = [hashlib.sha256(word.encode()).hexdigest()[:16] for word in words]
    table = pyarrow.table({"row": list(rows), "prompt": digests, **{name: list(of) for name, of in columns.items()}})
    parquet.write_table(table.replace_schema_metadata({"step": str(step)}), run / file)


def make_sweep(folder: Path, points: Sequence[Mapping[str, str]], job_ids: Sequence[str] | None = None) -> list[Path]:
    """A sweep's folder with its sweep.json; where its points' folders will be."""
    names = [",".join(f"{key}={value}" for key, value in point.items()) for point in points]
    ids: Sequence[str | None] = job_ids or [None] * len(names)
    listed = [SweepPoint(n, dict(p), "0123456789abcdef", i) for n, p, i in zip(names, points, ids, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    write_sweep(folder, Sweep("lambda_sweep", folder.name, list(points[0]), [], listed))
    return [folder / name for name in names]


def lambda_sweep(folder: Path, accuracy: Mapping[str, Sequence[float | None]] = ACCURACY, **values: Any) -> Path:
    """A sweep with an accuracy for each lambda and seed; None: a point that has not begun."""
    points = [{"loss.lam": lam, "seed": str(seed)} for lam in accuracy for seed in range(len(accuracy[lam]))]
    for place, point in zip(make_sweep(folder, points), points, strict=True):
        value = accuracy[point["loss.lam"]][int(point["seed"])]
        if value is not None:
            metrics = {"rewards/accuracy": value, "nll_loss": 1 - value, "lam": float(point["loss.lam"])}
            make_run(place, metrics, seed=int(point["seed"]), **values)
    return folder


def content(folder: Path) -> dict[str, Any]:
    """What summary.json holds."""
    return json.loads((folder / "summary.json").read_text())
