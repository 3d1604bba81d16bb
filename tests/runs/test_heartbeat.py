"""A run says that it lives whatever it does, and a disk that fails while it says so ends nothing."""

import errno
import time

import pytest
import torch.distributed as dist
from training.short_run import BASE, result

from orpo_exp import experiment
from orpo_exp.plugins.ddp import DDP
from orpo_exp.runs import folder as room
from orpo_exp.tracking import Trackers


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(room, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(experiment, "draw_plots", lambda folder: None)


def test_it_lives_while_it_scores_or_evaluates(run, pairs_file, tmp_path, monkeypatch, quick):
    """No step is made meanwhile."""
    score, beats = DDP.score, []

    def slow(self, micro_batches, *which):
        for _ in range(10):
            time.sleep(0.05)
            beats.append(result(tmp_path / "run")["heartbeat"])
        return score(self, micro_batches, *which)

    monkeypatch.setattr(DDP, "score", slow)
    run(*BASE, "train.max_steps=1", "train.eval_every=0")
    assert len(set(beats)) > 5


def test_a_result_that_cannot_be_written_meanwhile_ends_nothing(run, pairs_file, monkeypatch, quick):
    """Neither while training, nor after it, before the weights are saved."""
    write = room.write_atomically
    full: list[bool] = []

    def failing(path, text):
        if path.name == room.RESULT and full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    step, save_weights = DDP.step, DDP.save_weights

    def stepping(self, lr):
        full.append(True)
        time.sleep(0.05)
        return step(self, lr)

    def saving(self, place):
        time.sleep(0.05)
        save_weights(self, place)
        full.clear()

    monkeypatch.setattr(room, "write_atomically", failing)
    monkeypatch.setattr(DDP, "step", stepping)
    monkeypatch.setattr(DDP, "save_weights", saving)
    folder = run(*BASE)
    assert (result(folder)["status"], result(folder)["steps"]) == ("completed", 8)
    assert (folder / "model" / "model.safetensors").exists()
    said = (folder / "run.log").read_text()
    assert said.count("could not be written, the run goes on") == 1


def test_how_it_ended_is_written_before_the_ranks_part(run, pairs_file, monkeypatch, quick):
    """A group that is left can hang."""
    seen = []
    leave, finish = dist.destroy_process_group, Trackers.finish

    def leaving():
        seen.append("left")
        leave()

    monkeypatch.setattr(dist, "destroy_process_group", leaving)
    monkeypatch.setattr(Trackers, "finish", lambda self, told: (seen.append(told["status"]), finish(self, told)))
    run(*BASE, "optimizer.lr=1e30", code=1)
    assert seen == ["failed", "left"]
