"""Several ranks that are killed and go on: the same numbers, to the last bit. `uv run pytest -m parallel`."""

import json

import pytest
from support import killed_at, numbers, start_run, wait_for_end

pytestmark = pytest.mark.parallel

# 22 training pairs in batches of 8: steps 3, 6 and 9 end an epoch with a short batch
RUN = [
    "+experiment=orpo", "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=2", "tracker=[]",
    "train.epochs=3", "train.max_steps=10", "train.global_batch_size=8", "train.eval_every=4", "train.save_every=3",
    "train.micro_batch_size=2", "train.samples=0", "optimizer.lr=1e-3", "lam_schedule=balanced",
]  # fmt: skip


def test_ranks_that_were_killed_go_on_bit_for_bit(tmp_path, pairs_file):
    """With more than two ranks the order in which gradients are added depends on how they lie in DDP's buckets."""
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    wait_for_end(start_run(tmp_path, *RUN, "processes=3", f"hydra.run.dir={whole}"))
    killed_at(5, start_run(tmp_path, *RUN, "processes=3", f"hydra.run.dir={cut}"), cut)
    assert json.loads((cut / "result.json").read_text())["status"] == "running"
    wait_for_end(start_run(tmp_path, *RUN, "processes=3", f"hydra.run.dir={cut}"))
    assert "resumed at step 3 of 10" in (cut / "run.log").read_text()
    assert numbers(cut) == numbers(whole)
    assert (cut / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()


def test_another_number_of_ranks_goes_on_with_the_same_curve(tmp_path, pairs_file, run):
    whole, cut = run(*RUN, folder="whole"), tmp_path / "run"
    killed_at(5, start_run(tmp_path, *RUN, "processes=2", f"hydra.run.dir={cut}"), cut)
    run(*RUN)
    assert "ranks 2, now 1" in (cut / "run.log").read_text()
    for ours, theirs in zip(numbers(cut), numbers(whole), strict=True):
        assert ours.pop("split") == theirs.pop("split")
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)  # differences of rewards near 0 have no precision


def test_a_kill_in_the_middle_of_saving_loses_nothing_but_that_checkpoint(tmp_path, pairs_file, run):
    """A module of the user's own kills the process where the second checkpoint is about to get its name."""
    whole, cut, mine = run(*RUN, folder="whole"), tmp_path / "run", tmp_path / "mine"
    mine.mkdir()
    (mine / "killer.py").write_text(
        "import os, signal\n"
        "from orpo_exp.training import checkpoints\n"
        "replace = checkpoints.replace_folder\n"
        "def dying(beside, place):\n"
        "    if place.name == 'step-00000006':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(beside, place)\n"
        "checkpoints.replace_folder = dying\n"
    )
    killed = start_run(tmp_path, *RUN, f"hydra.run.dir={cut}", environment={"ORPO_EXP_PATH": str(mine)})
    wait_for_end(killed, code=-9)
    assert (cut / "checkpoints" / ".step-00000006.partial" / "manifest.json").exists()
    assert (cut / "checkpoints" / "latest").resolve().name == "step-00000003"
    run(*RUN)
    assert "resumed at step 3 of 10" in (cut / "run.log").read_text()
    assert numbers(cut) == numbers(whole)
