"""What a run's folder refuses: others' settings, others' data, two runs at a time."""

import json
import os

import pytest
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
