import json
import math

import pytest

from orpo_exp.tracking.plots import plot_run, running_mean

PNG = b"\x89PNG"


def record(step, split="train", **metrics):
    return {"step": step, "split": split, "time": 0.0, **metrics}


def names(folder, *records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    written = plot_run(folder)
    assert all(path.read_bytes().startswith(PNG) and path.parent == folder / "plots" for path in written)
    return [path.name for path in written]


def full(step, split="train"):
    rewards = {"rewards/chosen": -1.0, "rewards/rejected": -2.0, "rewards/margin": 1.0, "rewards/accuracy": 0.75}
    return record(step, split, loss=2.0, any_loss=1.0, lr=1e-5, lam=0.1, grad_norm=1.0, pairs_per_second=9.0, **rewards)


def test_a_run_gives_three_pictures(tmp_path):
    many = [full(step) for step in range(1, 101)]
    assert names(tmp_path, full(0, "eval"), *many, full(100, "eval")) == ["loss.png", "preference.png", "training.png"]


def test_one_step_is_enough(tmp_path):
    assert names(tmp_path, full(1)) == ["loss.png", "preference.png", "training.png"]


def test_what_is_missing_is_left_out(tmp_path):
    assert names(tmp_path) == []
    assert names(tmp_path, record(1, loss=1.0)) == ["loss.png"]
    assert names(tmp_path, record(1, some_loss=1.0), record(1, "eval", lam=0.1)) == ["loss.png"]
    assert names(tmp_path, record(1, lr=0.0)) == ["training.png"]


@pytest.mark.parametrize("split", ["train", "eval"])
def test_nulls_are_drawn_around(tmp_path, split):
    broken = full(2, split) | {"loss": None, "rewards/chosen": None, "rewards/accuracy": None, "lr": None}
    assert len(names(tmp_path, full(1, split), broken, full(3))) == 3
    assert len(names(tmp_path, broken, record(1, loss=None))) >= 2


def test_the_running_mean_leaves_a_slope_and_a_level_where_they_are():
    slope = [float(i) for i in range(500)]
    smooth = running_mean(slope)
    assert len(smooth) == 500
    assert smooth[20:480] == pytest.approx(slope[20:480])
    assert running_mean([3.0] * 200) == pytest.approx([3.0] * 200)
    assert not any(map(math.isnan, running_mean([1.0, 2.0])))
