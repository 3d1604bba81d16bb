import json
import math

import matplotlib
import pytest

from orpo_exp.metrics import Direction, Metric, from_json, to_json
from orpo_exp.tracking import plots
from orpo_exp.tracking.plots import STYLE, draw, plot_run, running_mean

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
    assert names(tmp_path, record(1, "eval", lam=0.1)) == []
    assert names(tmp_path, record(1, lr=0.0)) == ["training.png"]


def panels(folder, monkeypatch, *records):
    """The panels of a run's pictures: title, name along the axis and legend by picture."""
    found = {}

    def save(path, panels, records, about):
        with matplotlib.rc_context(STYLE):
            figure = draw(panels, records, about)
        legends = [ax.get_legend_handles_labels()[1] for ax in figure.axes]
        words = [(ax.get_title(loc="left"), ax.get_ylabel()) for ax in figure.axes]
        found[path.stem] = [(*pair, *legend) for pair, legend in zip(words, legends, strict=True)]
        return path

    monkeypatch.setattr(plots, "save", save)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    plots.plot_run(folder)
    return found


def test_what_is_to_fall_is_drawn_beside_the_loss(tmp_path, monkeypatch):
    """As result.json says it, not by its name."""
    declared = from_json(None) | {
        "surprise": Metric("surprise at the chosen answers", "nats", Direction.min, (2.0, "uniform")),
        "win_loss": Metric("wins less losses", good=Direction.max),
    }
    (tmp_path / "result.json").write_text(json.dumps({"metrics": to_json(declared)}))
    found = panels(tmp_path, monkeypatch, record(1, loss=1.0, surprise=1.0, win_loss=1.0, **{"rewards/accuracy": 0.5}))
    assert found["loss"] == [
        ("loss", "loss", "train"),
        ("surprise at the chosen answers", "surprise in nats", "uniform", "train"),
    ]
    title, label, *legend = found["preference"][0]
    assert "share of pairs" in title
    assert (label, legend) == ("rewards/accuracy", ["chance", "train"])


def test_a_folder_that_does_not_say_what_its_metrics_are_has_those_of_every_run(tmp_path, monkeypatch):
    found = panels(tmp_path, monkeypatch, record(1, loss=1.0, some_loss=1.0, pairs_per_second=2.0))
    assert found == {
        "loss": [("loss", "loss", "train")],
        "training": [("training speed", "pairs_per_second in pairs/s", "train")],
    }


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


def test_evaluations_are_joined_where_no_training_shows_the_way_between_them(tmp_path):
    rows = [record(step, "eval", loss=2.0, kept=1.0) for step in (0, 4)]
    rows += [record(step, loss=2.0) for step in range(1, 5)]
    about = from_json(None) | {"kept": Metric("kept")}
    axes = draw([plots.Panel(("loss",)), plots.Panel(("kept",))], rows, about).axes
    found = [{line.get_label(): line.get_linestyle() for line in ax.lines}["held out"] for ax in axes]
    assert found == ["None", ":"]


def test_a_result_of_before_bounds_is_read(tmp_path):
    written = to_json({"share": Metric("share", bounds=(0.0, 1.0))})
    assert from_json(json.loads(json.dumps(written)))["share"].bounds == (0.0, 1.0)
    del written["share"]["bounds"]
    assert from_json(written)["share"].bounds == (None, None)
