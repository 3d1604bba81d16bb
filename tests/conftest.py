import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import uneven_rows

from orpo_exp.cli import main

torch.set_num_threads(1)  # the models are tiny


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many tests run at a time: one for each core, fewer where each starts processes of its own."""
    return {"parallel": 2, "slurm": 0}.get(config.option.markexpr, len(os.sched_getaffinity(0)))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written into the checkout, read from a hub, or cached for the next test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORPO_EXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """24 pairs of uneven lengths as JSON lines."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(24)))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Run the command line in this process; returns the run's folder once the exit code is as expected."""

    def run_it(*arguments: str, folder: str = "run", code: int = 0) -> Path:
        path = tmp_path / folder
        assert main([*arguments, f"hydra.run.dir={path}"]) == code
        return path

    return run_it
