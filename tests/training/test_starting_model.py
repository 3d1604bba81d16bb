"""A run that goes on knows which weights it began with: references are built from them anew."""

import shutil

from support import numbers
from training.short_run import BASE, result


def test_another_model_in_the_same_folder_is_refused(run, pairs_file, cut_off, tmp_path):
    first, second = (
        run(*BASE, f"seed={seed}", "train.max_steps=1", folder=f"seed-{seed}") / "model" for seed in (0, 1)
    )
    shutil.copytree(first, tmp_path / "start")
    command = [*BASE, "model=hf", f"model.path={tmp_path / 'start'}", "loss=dpo"]
    whole = run(*command, folder="whole")
    cut_off(6)
    folder = run(*command, code=1)
    cut_off(0)
    shutil.copyfile(second / "model.safetensors", tmp_path / "start" / "model.safetensors")
    run(*command, code=2)
    assert "the starting model" in result(folder)["error"]
    shutil.copyfile(first / "model.safetensors", tmp_path / "start" / "model.safetensors")
    run(*command)
    assert numbers(folder) == numbers(whole)
