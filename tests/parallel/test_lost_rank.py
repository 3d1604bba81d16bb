"""A rank that goes or never comes is named, and nobody waits for it in vain. `uv run pytest -m parallel`."""

import json
import os
import signal
import socket
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from support import order_of

from orpo_exp.experiment import run
from orpo_exp.plugins import Place, Ranks, start_ranks
from orpo_exp.runs.order import RunOrder
from orpo_exp.schema import Refused
from orpo_exp.training.loop import Loop

pytestmark = pytest.mark.parallel

RUN = ("+experiment=quickstart", "train.max_steps=6", "train.samples=0", "data.eval_pairs=8", "tracker=[]")


def ends_on_one(place: Place, order: RunOrder, how: str) -> int:
    """Run a rank; on the second one something happens at the third step."""
    step = Loop.train_step

    def third(loop: Loop) -> object:
        if place.rank == 1 and loop.step == 3:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("no more room")
        return step(loop)

    Loop.train_step = third
    return run(order, place).code


@pytest.mark.parametrize(
    ("how", "plugin", "code", "said"),
    [
        ("killed", ["plugin=zero2"], 128 + signal.SIGKILL, "rank 1 was lost"),
        ("failed", ["plugin=hybrid", "plugin.pp_size=2"], 1, "rank 1 failed: MemoryError: no more room"),
    ],
)
def test_the_rank_that_went_is_named_where_the_run_is_looked_at(tmp_path, monkeypatch, how, plugin, code, said):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("orpo_exp.plugins.processes.GRACE_SECONDS", 60.0)  # for what is said on a busy machine, too
    order = replace(order_of(*RUN, *plugin), folder=tmp_path / "run")
    assert start_ranks(2, ends_on_one, order, how) in (code, 1)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["error"].startswith(said)
    assert said in (tmp_path / "run" / "run.log").read_text()


def test_ranks_that_do_not_come_are_not_waited_for_in_vain(monkeypatch):
    monkeypatch.setattr("orpo_exp.plugins.ranks.TO_START", timedelta(seconds=2))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(Refused, match=r"2 ranks were to meet at 127\.0\.0\.1:\d+, but not all came within 0:00:02"):
        Ranks(Place(rank=0, world_size=2), torch.device("cpu"))
    assert not dist.is_initialized()
