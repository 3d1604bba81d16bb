"""Runs that are cut off and go on: the same numbers as one that was left alone, to the last bit."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from support import numbers, uneven_rows
from training.short_run import BASE, result

from orpo_exp.cli import main
from orpo_exp.plugins.ddp import DDP
from orpo_exp.tracking.jsonl import read_metrics
from orpo_exp.training import Loop

VARIANTS = {
    "adaptive lambda": ["lam_schedule=balanced"],
    "dropout": ["model.dropout=0.2"],
    "momentum": ["optimizer=sgd", "optimizer.momentum=0.9"],
    "frozen reference": ["loss=dpo"],
    "moving reference": ["loss=dpo", "reference=synced", "reference.every=2", "reference.mix=0.5"],
}
SLOW = pytest.mark.slow  # the others cover the same lines
MARKS = {"momentum": SLOW, "frozen reference": SLOW}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The numbers of a run of BASE that is left alone."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(24)))
        assert main([*BASE, f"hydra.run.dir={place / 'run'}"]) == 0
    return numbers(place / "run")


@pytest.mark.parametrize("variant", [pytest.param(v, id=k, marks=MARKS.get(k, ())) for k, v in VARIANTS.items()])
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(run, pairs_file, cut_off, variant):
    whole = run(*BASE, *variant, folder="whole")
    cut_off(6)  # the checkpoint of step 4 is the last one: step 5 is computed twice
    folder = run(*BASE, *variant, code=1)
    assert [row["step"] for row in numbers(folder)] == [0, 1, 2, 3, 4, 4, 5]
    cut_off(0)
    run(*BASE, *variant)
    assert numbers(folder) == numbers(whole)
    for file in ("model/model.safetensors", "samples.md"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes()
    assert (result(folder)["status"], result(folder)["eval"]) == ("completed", result(whole)["eval"])
    assert "resumed at step 4 of 8" in (folder / "run.log").read_text()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=SLOW), signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP]
)
def test_a_signal_saves_and_nothing_is_computed_twice(run, pairs_file, expected, monkeypatch, number, capsys):
    train_step = Loop.train_step
    computed: list[int] = []

    def signalled(self):
        computed.append(self.step)
        if self.step == 5 and len(computed) == 5:
            os.kill(os.getpid(), number)
        return train_step(self)

    monkeypatch.setattr(Loop, "train_step", signalled)
    folder = run(*BASE, code=128 + number)
    assert (result(folder)["status"], result(folder)["steps"]) == ("interrupted", 5)
    assert not (folder / "model").exists()
    assert f"hydra.run.dir={folder}" in capsys.readouterr().out.replace("\n", "")
    run(*BASE)
    assert computed == [1, 2, 3, 4, 5, 6, 7, 8]
    assert numbers(folder) == expected


@pytest.mark.parametrize(
    "harm",
    ["flipped", *(pytest.param(h, marks=SLOW) for h in ("cut", "gone")), "manifest", "no text", "without settings"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(run, pairs_file, expected, cut_off, harm):
    cut_off(7)
    folder = run(*BASE, code=1)
    weights = folder / "checkpoints" / "step-00000006" / "policy.safetensors"
    content = weights.read_bytes()
    if harm == "flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "cut":
        weights.write_bytes(content[:-100])
    elif harm == "gone":
        weights.unlink()
    elif harm == "manifest":
        (weights.parent / "manifest.json").write_text('{"format": 1, "fi')
    elif harm == "no text":
        (weights.parent / "manifest.json").write_bytes(b"\xff\xfe{")
    else:
        manifest = json.loads((weights.parent / "manifest.json").read_text())
        del manifest["settings"]
        (weights.parent / "manifest.json").write_text(json.dumps(manifest))
    cut_off(0)
    run(*BASE)
    told = (folder / "run.log").read_text()
    assert f"{weights.parent} is damaged" in told
    assert "resumed at step 4" in told
    assert numbers(folder) == expected


def test_a_run_cut_off_while_saving_takes_no_half_for_a_whole(run, pairs_file, expected, monkeypatch):
    save = DDP.save

    def dying(self, folder, held):
        if "00000004" in folder.name:
            (folder / "policy.safetensors").write_bytes(b"half of i")
            raise RuntimeError("cut off")
        return save(self, folder, held)

    with monkeypatch.context() as patch:
        patch.setattr(DDP, "save", dying)
        folder = run(*BASE, code=1)
    assert (folder / "checkpoints" / "latest").resolve().name == "step-00000002"
    assert list((folder / "checkpoints").glob(".step-*"))
    run(*BASE)
    assert numbers(folder) == expected
    assert not list((folder / "checkpoints").glob(".step-*"))


def test_a_run_cut_off_before_its_first_checkpoint_begins_again(run, pairs_file, expected, cut_off):
    cut_off(2)
    folder = run(*BASE, code=1)
    cut_off(0)
    run(*BASE)
    assert numbers(folder) == expected


def test_a_completed_run_is_left_alone(run, pairs_file, capsys):
    folder = run(*BASE)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run(*BASE)
    assert "completed already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_config_yaml_is_replaced_at_once(run, pairs_file, cut_off):
    cut_off(4)
    folder = run(*BASE, code=1)
    os.link(folder / "config.yaml", folder / "former.yaml")
    cut_off(0)
    run(*BASE)
    assert (folder / "former.yaml").stat().st_nlink == 1
    assert (folder / "former.yaml").read_text() == (folder / "config.yaml").read_text()


def test_a_run_can_go_on_from_another_ones_checkpoint(run, pairs_file, capsys):
    whole = run(*BASE, "train.keep_last=4", folder="whole")
    given = whole / "checkpoints" / "step-00000004"
    folder = run(*BASE, f"resume={given}", folder="branch")
    assert numbers(folder) == [row for row in numbers(whole) if row["step"] > 4]
    run(*BASE, f"resume={whole}", "loss.lam=0.3", folder="other", code=2)
    run(*BASE, f"resume={whole}/nothing", folder="none", code=2)
    assert "one of its checkpoints" in capsys.readouterr().err
    assert not (folder.parent / "none").exists()


def test_what_began_at_another_ones_checkpoint_goes_on_without_it(run, pairs_file, cut_off, capsys):
    whole = run(*BASE, folder="whole")
    given = f"resume={whole}/checkpoints/step-00000006"
    cut_off(7)
    folder = run(*BASE, given, folder="branch", code=1)  # before a checkpoint of its own
    assert given in capsys.readouterr().out.replace("\n", "")
    cut_off(8)
    run(*BASE, given, "train.save_every=1", folder="branch", code=1)
    shutil.rmtree(whole)
    cut_off(0)
    run(*BASE, given, folder="branch")
    assert [row["step"] for row in numbers(folder)] == [7, 8, 8]


def test_a_job_that_is_requeued_goes_on_although_it_was_to_begin_anew(run, pairs_file, cut_off, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    cut_off(7)
    run(*BASE, "resume=never", code=1)
    cut_off(0)
    run(*BASE, "resume=never", code=2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    folder = run(*BASE, "resume=never")
    assert "resumed at step 6" in (folder / "run.log").read_text()


def test_a_resumed_run_holds_no_file_of_its_checkpoint(run, pairs_file, cut_off, monkeypatch):
    """On some disks a file that is mapped cannot be removed, nor its folder."""
    cut_off(4)
    run(*BASE, "data.eval_size=4", code=1)
    cut_off(0)
    train_step = Loop.train_step
    mapped: list[str] = []

    def looking(self):
        mapped.append(Path("/proc/self/maps").read_text())
        return train_step(self)

    monkeypatch.setattr(Loop, "train_step", looking)
    run(*BASE, "data.eval_size=4")
    assert mapped
    assert not any("/checkpoints/" in maps for maps in mapped)


def test_a_resumed_run_shows_no_step_twice_in_tensorboard(run, pairs_file, cut_off):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cut_off(6)
    run(*BASE, "tracker=[tensorboard]", code=1)
    cut_off(0)
    folder = run(*BASE, "tracker=[tensorboard]")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [event.step for event in events.Scalars("eval/loss")] == [0, 4, 8]


def test_requeues_and_time_are_counted_over_all_attempts(run, pairs_file, cut_off, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    cut_off(4)
    folder = run(*BASE, code=1)
    first = result(folder)
    assert (first["job_id"], first["requeues"]) == ("7_3", 0)
    left = first | {"status": "running", "host": "elsewhere"}
    (folder / "result.json").write_text(json.dumps(left))
    cut_off(0)
    run(*BASE, code=2)  # another process of this very job, on another of its nodes, runs it
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run(*BASE)  # the job was started again by Slurm: what it left as running is dead
    assert result(folder)["requeues"] == 1
    assert result(folder)["wall_time_seconds"] > first["wall_time_seconds"]
    assert len(read_metrics(folder / "metrics.jsonl")) == len(numbers(folder))
