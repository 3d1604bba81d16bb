"""Scoring under a cached reference is kept in parts: a job's time limit costs the part that was being scored."""

import os
import signal

import pytest
from safetensors.torch import load_file
from support import numbers
from training.short_run import result

from orpo_exp.plugins.ddp import DDP
from orpo_exp.training import reference

# 20 training pairs in parts of two
BASE = [
    "+experiment=orpo", "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=4", "tracker=[]",
    "train.epochs=1", "train.global_batch_size=8", "train.micro_batch_size=2", "train.samples=0", "optimizer.lr=1e-3",
    "loss=dpo", "reference=cached", "layout=padded",
]  # fmt: skip


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """The pairs of each batch that is scored from now on."""
    score, seen = DDP.score, []

    def counting(self, micro_batches, *which):
        seen.append(sum(len(batch.rows) for batch in micro_batches))
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, micro_batches, *which)

    monkeypatch.setattr(DDP, "score", counting)
    monkeypatch.setattr(reference, "PART", 2)
    return seen


def test_it_stops_between_two_parts_and_goes_on_there(run, pairs_file, scored, tmp_path):
    folder = run(*BASE, f"reference.folder={tmp_path / 'cut'}", code=128 + signal.SIGTERM)
    assert scored == [2, 2, 2]
    assert (result(folder)["status"], result(folder)["steps"]) == ("interrupted", 0)
    assert "what is scored is kept" in (folder / "run.log").read_text()
    assert not (tmp_path / "cut").exists()
    run(*BASE, f"reference.folder={tmp_path / 'cut'}")
    assert scored[3:12] == [2] * 9  # 20 training and 4 held-out pairs, six of them scored before
    (kept,) = (tmp_path / "cut").iterdir()
    assert not (folder / reference.PARTS).exists()

    whole = run(*BASE, f"reference.folder={tmp_path / 'at-once'}", folder="whole")
    (at_once,) = (tmp_path / "at-once").iterdir()
    assert kept.name == at_once.name
    ours, theirs = load_file(kept), load_file(at_once)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert numbers(folder) == numbers(whole)
