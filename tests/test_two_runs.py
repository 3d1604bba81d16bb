"""Two runs after one another in one process, as in a notebook, leave nothing behind."""

import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support import order_of

from orpo_exp import experiment
from orpo_exp.launchers.server import import_all
from orpo_exp.plugins.ddp import DDP
from orpo_exp.plugins.processes import Place
from orpo_exp.plugins.ranks import Ranks, left_afterwards

RUN = [
    "+experiment=orpo", "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=4", "train.epochs=1",
    "train.global_batch_size=8", "train.samples=1", "train.sample_tokens=4", "loss=dpo", "reference=cached",
    "reference.folder=cache",
]  # fmt: skip


def settings() -> dict[str, object]:
    """What a run could leave behind in its process; of loggers those that are there by now."""
    loggers = {n: at for n, at in logging.root.manager.loggerDict.items() if isinstance(at, logging.Logger)}
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "environment": dict(os.environ),
        "loggers": {n: (at.level, at.propagate, at.disabled, list(at.handlers)) for n, at in loggers.items()},
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "process group": dist.is_initialized(),
        "threads": {t.name for t in threading.enumerate()} - {"tqdm_monitor"},  # a library's own
        "warnings": list(warnings.filters),
        "cores": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "folder": os.getcwd(),
    }


def two_runs() -> None:
    """In a process of its own, in a folder with pairs.jsonl: what is there before is there after, and nothing else."""
    import_all()
    before = settings()
    results = [experiment.run(replace(order_of(*RUN), folder=Path(name).absolute())) for name in ("first", "second")]
    after = settings()
    after["loggers"] = {name: after["loggers"][name] for name in before["loggers"]}
    for what in before:
        assert after[what] == before[what], (what, before[what], after[what])
    assert [result.status for result in results] == ["completed"] * 2
    assert results[0].metrics == results[1].metrics
    assert results[0].folder == Path("first").absolute()
    assert 0 <= results[0].metrics["logps/accuracy"] <= 1


@pytest.mark.slow
def test_they_leave_nothing_behind(tmp_path, pairs_file):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", "from test_two_runs import two_runs; two_runs()"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_that_fails_says_so_and_leaves_nothing_either(tmp_path, pairs_file, capsys):
    order = replace(order_of(*RUN, "optimizer.lr=1e30"), folder=tmp_path / "run")
    result = experiment.run(order)
    assert (result.status, result.code) == ("failed", 1)
    assert "is not finite" in result.error
    assert not dist.is_initialized()
    assert not logging.getLogger("orpo_exp").handlers


def test_a_plugin_that_cannot_be_made_leaves_nothing_either(tmp_path, pairs_file, monkeypatch, capsys):
    def failing(self, config, place):
        super(DDP, self).__init__(config, place)
        raise RuntimeError("no such library")

    with monkeypatch.context() as patch:
        patch.setattr(DDP, "__init__", failing)
        assert experiment.run(replace(order_of(*RUN), folder=tmp_path / "run")).code == 1
    assert not dist.is_initialized()
    assert experiment.run(replace(order_of(*RUN), folder=tmp_path / "run")).code == 0


def test_the_ranks_of_a_run_know_its_replicas():
    """One rank by itself: what it says is what is heard."""
    with left_afterwards():
        ranks = Ranks(Place(), torch.device("cpu"))
        assert (ranks.replica, ranks.replicas, ranks.is_main) == (0, 1, True)
        given = torch.tensor([1.5, 2.0], dtype=torch.float64)
        assert ranks.sum(given).equal(given)
        assert [part.tolist() for part in ranks.gather(torch.tensor([3, 4]))] == [[3, 4]]
        assert (ranks.largest(7), ranks.everywhere(True), ranks.everywhere(False)) == (7, True, False)
        assert ranks.exchange("prompt ü") == ["prompt ü"]
    assert not dist.is_initialized()
