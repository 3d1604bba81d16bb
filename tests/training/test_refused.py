"""What a run's folder refuses: others' settings, others' data, two runs at a time."""

import json
import os

import pytest
from support import order_of
from training.short_run import BASE, result


def test_another_setting_is_refused_by_name_and_one_without_influence_is_not(run, pairs_file, cut_off, capsys):
    cut_off(4)
    folder = run(*BASE, code=1)
    before = result(folder)
    run(*BASE, "loss.lam=0.5", "seed=1", code=2)
    told = capsys.readouterr().err
    assert "loss.lam (was 0.1, is now 0.5)" in told
    assert "seed (was 0, is now 1)" in told
    assert "train" not in told
    run(*BASE, "loss=dpo", code=2)
    assert "choices.loss (was orpo, is now dpo)" in capsys.readouterr().err
    run(*BASE, "resume=never", code=2)
    assert "resume=never" in capsys.readouterr().err
    assert result(folder) == before
    cut_off(0)
    run(*BASE, "train.micro_batch_size=3", "train.save_every=0")


def test_a_part_of_a_loss_that_is_gone_is_refused_by_name(run, pairs_file, cut_off, capsys):
    cut_off(4)
    run(*BASE, "loss=combined", code=1)
    cut_off(0)
    run(*BASE, "loss=combined", "~loss.parts.sft", "~loss.weights.sft", code=2)
    assert "loss.weights.sft (was 1.0, is now not there)" in capsys.readouterr().err
    run(*BASE, "loss=combined", "tracker=[tensorboard]")


def test_other_data_under_the_same_name_are_refused(run, pairs_file, cut_off):
    cut_off(4)
    folder = run(*BASE, code=1)
    pairs_file.write_text(pairs_file.read_text().replace("tiny", "huge"))
    cut_off(0)
    run(*BASE, code=2)
    assert "the data" in result(folder)["error"]


@pytest.mark.parametrize("text", ["", "loss: {lam: 0.1", None])
def test_a_config_yaml_that_is_lost_is_told(run, pairs_file, cut_off, capsys, text):
    cut_off(4)
    folder = run(*BASE, code=1)
    if text is None:
        (folder / "config.yaml").unlink()
    else:
        (folder / "config.yaml").write_text(text)
    (folder / "result.json").write_text("{")  # nor does this say any more which settings there were
    run(*BASE, code=2)
    told = capsys.readouterr().err
    assert "hydra.run.dir" in told
    assert "Traceback" not in told


def test_only_damaged_checkpoints_are_refused(run, pairs_file, cut_off):
    cut_off(4)
    folder = run(*BASE, code=1)
    (folder / "checkpoints" / "step-00000002" / "state.json").unlink()
    before = (folder / "metrics.jsonl").read_text()
    run(*BASE, code=2)
    assert "none of the 1 checkpoints" in result(folder)["error"]
    assert (folder / "metrics.jsonl").read_text() == before


def test_a_folder_whose_run_still_runs_is_refused(run, pairs_file, capsys):
    folder = run(*BASE)
    living = result(folder) | {"status": "running", "pid": os.getpid()}
    (folder / "result.json").write_text(json.dumps(living))
    run(*BASE, code=2)
    assert f"process {os.getpid()}" in capsys.readouterr().err


def test_a_run_does_not_go_back_in_its_own_folder(run, pairs_file, cut_off, capsys):
    cut_off(7)
    folder = run(*BASE, code=1)
    for given in (folder, folder / "checkpoints" / "step-00000004"):
        run(*BASE, f"resume={given}", code=2)
        assert "begin in a new folder" in capsys.readouterr().err


def test_only_what_is_meant_for_users_is_told_as_refused(run, pairs_file, monkeypatch, capsys):
    """A ValueError from inside is a failure, with its traceback."""
    from orpo_exp.losses.orpo import ORPO

    monkeypatch.setattr(ORPO, "__call__", lambda self, *given: list(zip([1], [], strict=True)))
    folder = run(*BASE, code=1)
    assert "Traceback" in result(folder)["error"]
    assert "zip()" in result(folder)["error"]


def test_the_data_are_read_once(run, pairs_file, monkeypatch):
    from orpo_exp.data.files import JsonFiles

    load, loads = JsonFiles.load, []

    def counting(self, seed):
        loads.append(seed)
        return load(self, seed)

    monkeypatch.setattr(JsonFiles, "load", counting)
    run(*BASE)
    assert loads == [0]


def test_a_points_resume_line_finds_the_folder_of_its_options(tmp_path):
    from omegaconf import DictConfig

    from orpo_exp.cli import checked_point
    from orpo_exp.sweeps.points import combinations

    (point,) = combinations(["+experiment=quickstart", f"hydra.sweep.dir={tmp_path}"])
    order = checked_point(point, str(tmp_path), DictConfig({}))
    assert f"--config-dir {tmp_path}" in order.resume_command
    assert "--config-dir" not in order_of("+experiment=quickstart").resume_command


@pytest.mark.parametrize("held_out", [1, 2])
def test_kto_takes_the_answers_of_another_pair_where_a_batch_has_but_one(run, pairs_file, monkeypatch, held_out):
    """21 or 22 training pairs in batches of 4, or 3: the last one is a single pair."""
    from orpo_exp.layouts.padded import Padded

    collate, own = Padded.collate, []

    def looking(self, pairs, needs):
        own.extend(pair.mismatched[0].tolist() == pair.chosen_ids.tolist() for pair in pairs if pair.mismatched)
        return collate(self, pairs, needs)

    monkeypatch.setattr(Padded, "collate", looking)
    rows = pairs_file.read_text().splitlines(keepends=True)
    pairs_file.write_text("".join(rows[: 21 + held_out]))
    size = f"train.global_batch_size={20 // 5}"
    run(*BASE, f"data.eval_size={held_out}", "loss=kto", "layout=padded", size, "train.max_steps=6", "train.epochs=1")
    assert own
    assert not any(own)
