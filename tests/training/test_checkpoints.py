"""Which checkpoints are kept, and what happens where one cannot be written."""

import errno
import json
import re
import resource
import shutil

from support import numbers
from training.short_run import BASE, result, steps_saved

from orpo_exp.plugins.ddp import DDP
from orpo_exp.tracking.jsonl import Jsonl
from orpo_exp.training import checkpoints
from orpo_exp.training.checkpoints import Checkpoints


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint_whole(run, pairs_file, monkeypatch):
    save = DDP.save

    def full(self, folder, held):
        if "00000004" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, folder, held)

    with monkeypatch.context() as patch:
        patch.setattr(DDP, "save", full)
        folder = run(*BASE, code=1)
    assert re.search("the checkpoint of step 4 could not be written.*No space left", result(folder)["error"])
    assert "Traceback" not in (folder / "run.log").read_text()
    assert steps_saved(folder) == [2]
    run(*BASE)
    assert "resumed at step 2" in (folder / "run.log").read_text()


def test_a_file_that_grows_too_large_fails_like_a_full_disk(run, pairs_file, capsys):
    """The limit on a file's size stands in for a full disk: safetensors' own writer meets it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        folder = run(*BASE, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result(folder)["status"] == "failed"
    assert "the checkpoint of step 2 could not be written" in result(folder)["error"]
    assert "Traceback" not in (folder / "run.log").read_text()
    assert "Traceback" not in "".join(capsys.readouterr())


def test_numbers_that_cannot_be_written_end_the_run(run, pairs_file, monkeypatch):
    log = Jsonl.log

    def full(self, step, split, metrics):
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        log(self, step, split, metrics)

    monkeypatch.setattr(Jsonl, "log", full)
    folder = run(*BASE, code=1)
    assert "No space left" in result(folder)["error"]
    assert steps_saved(folder) == [2]


def test_the_newest_and_the_best_checkpoints_stay(run, pairs_file, monkeypatch):
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}
    note = Checkpoints.note
    monkeypatch.setattr(Checkpoints, "note", lambda self, step, metrics: note(self, step, {"loss": losses[step]}))
    best = ["train.keep_best=2", "train.best_metric=loss"]
    folder = run(*BASE, *best, "train.eval_every=2", "train.save_every=3", "train.keep_last=1")
    # saved at 2 (best so far), 3, 4 (best), 6 (both); 8 is neither
    assert steps_saved(folder) == [4, 6]
    state = json.loads((folder / "checkpoints" / "latest" / "state.json").read_text())
    assert (state["best"], state["best_by"]) == ([[4, 1.0], [6, 2.0]], ["loss", -1.0])


def test_a_metric_to_choose_by_is_known_and_has_a_good_end_before_anything_starts(run, pairs_file, capsys):
    folder = run(*BASE, "train.keep_best=1", "train.best_metric=acuracy", code=2)
    assert "rewards/accuracy" in capsys.readouterr().err
    assert not folder.exists()
    run(*BASE, "train.keep_best=1", "train.best_metric=logps/rejected", code=2)
    assert "train.best_direction" in capsys.readouterr().err


def test_a_resumed_run_may_choose_by_another_metric(run, pairs_file, cut_off):
    best = ["train.keep_best=1", "train.eval_every=2"]
    stopped = ["train.save_every=4", "train.keep_last=1"]
    cut_off(7)
    folder = run(*BASE, *best, *stopped, "train.best_metric=logps/chosen", code=1)
    cut_off(0)
    run(*BASE, *best, *stopped, "train.best_metric=loss", "train.best_direction=min")
    (kept,) = json.loads((folder / "checkpoints" / "latest" / "state.json").read_text())["best"]
    evaluations = {row["step"]: row["loss"] for row in numbers(folder) if row["split"] == "eval"}
    assert kept[1] == evaluations[kept[0]]


def test_a_copy_in_which_latest_became_a_folder_goes_on(run, pairs_file, cut_off):
    cut_off(3)
    folder = run(*BASE, code=1)
    cut_off(0)
    latest = folder / "checkpoints" / "latest"
    latest.unlink()
    shutil.copytree(folder / "checkpoints" / "step-00000002", latest)
    run(*BASE)
    assert latest.resolve().name == "step-00000008"
    assert steps_saved(folder) == [6, 8]


def test_what_fails_after_a_checkpoint_is_whole_ends_no_run(run, pairs_file, monkeypatch):
    def refuse(place):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(checkpoints, "remove_folder", refuse)
    folder = run(*BASE)
    assert steps_saved(folder) == [2, 4, 6, 8]
    assert "checkpoints are whole" in (folder / "run.log").read_text()
