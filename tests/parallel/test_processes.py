"""Several processes: the same curve, one folder, and an orderly end. `uv run pytest -m parallel`."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import (
    children,
    main_rank_leaves,
    order_of,
    ranks_talk,
    run_without_room,
    start_run,
    train_all,
    wait_for_end,
)

from orpo_exp.plugins import processes
from orpo_exp.tracking.jsonl import read_metrics

pytestmark = pytest.mark.parallel

OWN = [
    "+experiment=orpo", "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=2", "train.epochs=7",
    "train.max_steps=20", "train.global_batch_size=8", "train.max_grad_norm=null", "train.samples=1",
    "train.sample_tokens=4", "tracker=[console]", "optimizer.lr=1e-3",
]  # fmt: skip
TERMS = ("loss", "nll_loss", "odds_ratio_loss")
MICRO = {1: 8, 2: 3, 4: 1}  # pairs per forward, by number of processes


def rows(folder: Path) -> list[dict]:
    return read_metrics(folder / "metrics.jsonl")


def test_the_same_curve_on_1_2_and_4_processes(tmp_path, pairs_file, monkeypatch):
    """22 training pairs in batches of 8: the short batch of 6 leaves two of four ranks without a pair in a round."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    optimizers = ("adamw", "sgd")
    orders = {name: order_of(*OWN, f"optimizer={name}") for name in optimizers}
    for count, size in MICRO.items():
        train_all(count, size, orders, tmp_path / str(count))
    for optimizer in optimizers:
        one, *others = (rows(tmp_path / str(count) / optimizer) for count in MICRO)
        assert [row["step"] for row in one] == [0, *range(1, 21), 20]
        for other in others:
            for ours, theirs in zip(one, other, strict=True):
                names = [*TERMS, "grad_norm"] if ours["split"] == "train" else TERMS
                a, b = (torch.tensor([row[name] for name in names], dtype=torch.float64) for row in (ours, theirs))
                torch.testing.assert_close(a, b, rtol=1e-4, atol=0)
    logs = {f.name for f in (tmp_path / "4" / "sgd").glob("rank-*.log")}
    assert logs == {"rank-1.log", "rank-2.log", "rank-3.log"}


def test_torchrun_ranks_share_one_folder(tmp_path, pairs_file):
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    wait_for_end(start_run(tmp_path, *OWN, "train.max_steps=2", launcher=launcher))
    (folder,) = (tmp_path / "outputs" / "orpo").iterdir()
    assert json.loads((folder / "result.json").read_text())["world_size"] == 2
    assert (folder / "rank-1.log").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_ranks_cleanly(tmp_path, pairs_file, number):
    """The main one may take its time, to upload what it has, say."""
    folder = tmp_path / "run"
    arguments = [*OWN, "processes=2", "train.max_steps=100000", "train.epochs=null", f"hydra.run.dir={folder}"]
    slow = module(
        tmp_path,
        "import time\n"
        "from orpo_exp.plugins import processes\n"
        "from orpo_exp.tracking import Trackers\n"
        "processes.GRACE_SECONDS = 0.1\n"
        "finish = Trackers.finish\n"
        "Trackers.finish = lambda self, result: (time.sleep(3), finish(self, result))\n",
    )
    process = start_run(tmp_path, *arguments, environment=slow)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) > 3, process)
    process.send_signal(number)
    output = wait_for_end(process, code=128 + number, timeout=60)
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert "To go on with this run" in output
    assert "Traceback" not in output
    wait_for(lambda: not alive(process.pid))


def test_a_rank_does_not_wait_long_for_a_main_rank_that_has_left(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1)
    began = time.monotonic()
    assert processes.start_ranks(2, main_rank_leaves) == 130
    assert time.monotonic() - began < 40


def test_each_replica_is_heard_once_and_what_decides_is_agreed_on_by_all(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert processes.start_ranks(4, ranks_talk) == 0


def test_a_rank_that_cannot_save_tells_all(tmp_path, pairs_file, capfd):
    order = replace(order_of(*OWN, "train.save_every=2"), folder=tmp_path / "run")
    assert processes.start_ranks(2, run_without_room, order) == 1
    assert "Traceback" not in "".join(capfd.readouterr())
    error = json.loads((tmp_path / "run" / "result.json").read_text())["error"]
    assert error.startswith("the checkpoint of step 2 could not be written")
    assert "No space left on device" in error


def test_a_lost_rank_takes_the_others_with_it(tmp_path, pairs_file):
    folder = tmp_path / "run"
    arguments = [*OWN, "processes=2", "train.max_steps=100000", "train.epochs=null", f"hydra.run.dir={folder}"]
    process = start_run(tmp_path, *arguments)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) > 3, process)
    main_rank = json.loads((folder / "result.json").read_text())["pid"]
    other = next(pid for pid in children(process.pid) if pid != main_rank and b"spawn_main" in cmdline(pid))
    os.kill(other, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, 130), output
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"
    wait_for(lambda: not alive(main_rank))


def module(tmp_path: Path, text: str) -> dict[str, str]:
    """A module of the user's own that changes the program, in the ranks too, for they import it to begin."""
    folder = tmp_path / "mine"
    folder.mkdir()
    begin = (
        "from orpo_exp import experiment\n"
        "run_rank = experiment.run_rank\n"
        "def changed(place, order):\n"
        "    return run_rank(place, order)\n"
        "experiment.run_rank = changed\n"
    )
    (folder / "changes.py").write_text(text + begin)
    return {"ORPO_EXP_PATH": str(folder)}


def wait_for(condition, process: subprocess.Popen[str] | None = None, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(process.communicate()[0])
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()
