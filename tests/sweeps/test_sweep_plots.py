import itertools
import math

import pytest
from sweeps.builder import DECLARED, make_run, make_sweep

from orpo_exp.metrics import Metric
from orpo_exp.sweeps import plots
from orpo_exp.sweeps.plots import against, draw_sweep, heat_map, without_repeats
from orpo_exp.sweeps.results import read_results

PNG = b"\x89PNG"
METRIC = "rewards/accuracy"


def drawn(folder, evaluations=3, declared=None, **swept):
    """Draw a sweep over every combination of these values; names of the pictures."""
    points = [dict(zip(swept, map(str, values), strict=True)) for values in itertools.product(*swept.values())]
    for i, place in enumerate(make_sweep(folder, [{k.replace("_", "."): v for k, v in p.items()} for p in points])):
        metrics = {METRIC: math.sin(i), "nll_loss": i / 10, "odds_ratio_loss": i * i, "constant": 1.0}
        if "loss_lam" in swept:
            metrics["lam"] = float(points[i]["loss_lam"])
        steps = [{"step": step, **metrics} for step in range(evaluations)]
        make_run(place, metrics, evaluations=steps, declared=declared, seed=int(points[i].get("seed", 0)))
    results = read_results([folder])
    pictures = draw_sweep(results, METRIC, folder / "plots")
    assert all(path.read_bytes().startswith(PNG) and text for path, text in pictures.items())
    assert set(pictures) == set((folder / "plots").iterdir())
    return {path.stem for path in pictures}


ALL = {"metrics", "further_metrics", "learning_curves"}


@pytest.mark.parametrize(
    ("swept", "expected"),
    [
        ({"loss_lam": (0, 0.05, 1.0), "seed": (0, 1)}, ALL),
        ({"loss": ("sft", "orpo", "kto"), "seed": (0, 1)}, ALL),
        ({"loss_lam": (0, 1), "optimizer_lr": (1e-4, 1e-3), "seed": (0,)}, ALL | {"heat_map"}),
        ({"loss": ("sft", "dpo"), "model": ("null", "[1, 2]")}, ALL | {"heat_map"}),
        ({"loss_lam": (0, 1), "model": ("a", "b"), "data": ("x", "y")}, {"metrics"}),
        ({"seed": range(3)}, ALL),
        ({"loss_lam": (0.1,)}, {"metrics", "learning_curves"}),
    ],
)
def test_what_was_swept_decides_the_pictures(tmp_path, swept, expected):
    assert drawn(tmp_path, **swept) == expected


def test_panels_say_what_a_metric_is_in_which_unit_and_what_is_worth_knowing(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "heat_map", lambda *given: figures.append(heat_map(*given)) or figures[-1])
    monkeypatch.setattr(plots, "against", lambda *given: figures.append(against(*given)) or figures[-1])
    shift = Metric("how far the policy went", "nats", level=(0.25, "enough"))
    drawn(tmp_path, declared=DECLARED | {"odds_ratio_loss": shift}, loss_lam=(0, 1), optimizer_lr=(1, 2))
    panels = {ax.get_ylabel(): ax for figure in figures for ax in figure.axes}
    assert panels["odds_ratio_loss in nats"].get_title(loc="left") == "how far the policy went"
    assert "enough" in {text.get_text() for text in panels["odds_ratio_loss in nats"].texts}
    assert panels["nll_loss in nats per token"].get_title(loc="left") == "negative log-likelihood"
    assert "share of pairs" in panels[METRIC].get_title(loc="left")
    assert f"{METRIC}, mean over seeds" in panels


def test_without_evaluations_on_the_way_there_are_no_curves(tmp_path):
    assert drawn(tmp_path, evaluations=1, loss_lam=(0, 1)) == {"metrics", "further_metrics"}


def test_without_results_there_are_no_pictures_and_old_ones_go(tmp_path):
    make_sweep(tmp_path, [{"loss.lam": "0"}])
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "heat_map.png").write_bytes(PNG)
    assert draw_sweep(read_results([tmp_path]), METRIC, tmp_path / "plots") == {}
    assert list((tmp_path / "plots").iterdir()) == []


def swept(folder, *metrics):
    """A sweep over two lambdas and three seeds, one mapping of final metrics for each point."""
    places = make_sweep(folder, [{"loss.lam": lam, "seed": seed} for lam in "01" for seed in "012"])
    for i, (place, of) in enumerate(zip(places, metrics, strict=True)):
        make_run(place, of, declared=DECLARED, seed=i % 3)
    return read_results([folder])


def test_an_axis_ends_where_its_metric_does(tmp_path):
    """And so does the first interval, of 0.9667 and 4.303 times 0.0577 / sqrt(3), which would reach up to 1.110."""
    results = swept(tmp_path, *({METRIC: share} for share in (0.9, 1.0, 1.0, 0.8, 0.85, 0.9)))
    (ax,) = against(results, "loss.lam", None, [METRIC]).axes
    low, high = ax.get_ylim()
    assert 0 < low < 0.8
    assert 1.0 < high < 1.02
    assert max(float(top) for bar in ax.collections for _, top in bar.get_segments()[0]) == 1.0
    assert "cut off" not in ax.get_title()


def test_bars_that_reach_far_beyond_the_seeds_are_cut_off_and_that_is_said(tmp_path):
    """The first one reaches from -3.6 to 9.6: 3 and 4.303 times sqrt(7 / 3)."""
    results = swept(tmp_path, *({"rewards/margin": margin} for margin in (1.0, 2.0, 6.0, 3.0, 3.0, 3.1)))
    (ax,) = against(results, "loss.lam", None, ["rewards/margin"]).axes
    low, high = ax.get_ylim()
    assert -3.6 < low < 1.0
    assert 6.0 < high < 9.6
    assert "cut off" in ax.get_title()


def test_a_metric_that_is_another_one_in_all_points_has_no_panel(tmp_path):
    both = [{METRIC: i / 8, "logps/accuracy": i / 8, "rewards/margin": i / 8} for i in range(6)]
    both[4]["rewards/margin"] = 0.0
    results = swept(tmp_path, *both)
    assert without_repeats(results.groups, [METRIC, "logps/accuracy", "rewards/margin"]) == [METRIC, "rewards/margin"]
