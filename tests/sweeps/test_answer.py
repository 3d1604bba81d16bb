"""What a summary says where runs have written their pairs down."""

import json
import math

import pytest
import scipy.stats
from sweeps.builder import DECLARED, content, lambda_sweep, make_pairs

from orpo_exp.sweeps import summary
from orpo_exp.sweeps.summary import write_summary


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Drawing takes seconds."""
    monkeypatch.setattr(summary, "draw_pictures", lambda *_: {})


def test_the_pairs_of_one_seed_give_it_an_interval_that_speaks_for_it(tmp_path):
    folder = lambda_sweep(tmp_path / "sweep", {"0": (0.5,), "1": (0.75,)}, declared=DECLARED)
    right = {"0": [1, 1, 0, 0] * 10, "1": [1, 1, 1, 0] * 10}
    for lam, outcomes in right.items():
        make_pairs(folder / f"loss.lam={lam},seed=0", {"rewards/accuracy": outcomes})
    answer = write_summary(folder)
    lead = content(folder)["lead"][0]
    # 10 pairs for it, none against; one of each kind added (Bonett and Price)
    mean, n = 10 / 42, 42
    half = scipy.stats.t.ppf(0.975, 39) * math.sqrt((12 / n - mean**2) / (n - 1))
    assert (lead["low"], lead["high"]) == pytest.approx((0.25 - half, 0.25 + half))
    assert lead["told_apart"]
    assert "(t, one seed and 40 pairs)" in answer.text
    assert "told apart, for these very runs on other pairs than these 40; of other seeds it says nothing" in answer.text
    assert content(folder)["settings"][0]["metrics"]["rewards/accuracy"]["pairs"] == 40


def test_what_a_lead_lacks_is_told(tmp_path):
    folder = lambda_sweep(tmp_path / "sweep", {"0": (0.55, 0.55), "1": (0.6, 0.6)}, declared=DECLARED)
    right = {"0": ([1] * 22 + [0] * 18, [1] * 22 + [0] * 18), "1": ([0] * 16 + [1] * 24, [1, 0, 0, 1, 1] * 8)}
    for lam, seeds in right.items():
        for seed, outcomes in enumerate(seeds):
            make_pairs(folder / f"loss.lam={lam},seed={seed}", {"rewards/accuracy": outcomes})
    text = write_summary(folder).text
    assert (
        "(paired t, 2 seeds and 40 pairs). That includes 0: they are not told apart, for other seeds and other" in text
    )
    assert "Were the lead to stay what it is, about" in text
    assert " held-out pairs would tell them apart." in text


def test_the_setting_that_was_chosen_is_told_on_the_test_pairs_as_well(tmp_path):
    folder = lambda_sweep(tmp_path / "sweep", {"0": (0.5, 0.5), "1": (0.75, 0.7)}, declared=DECLARED)
    assert "test pairs" not in write_summary(folder).text
    tested = {"0": (0.9, 0.9), "1": (0.6, 0.65)}  # which choose nothing
    for lam, values in tested.items():
        for seed, value in enumerate(values):
            run = folder / f"loss.lam={lam},seed={seed}"
            result = json.loads((run / "result.json").read_text())
            (run / "result.json").write_text(json.dumps(result | {"test": {"rewards/accuracy": value}}))
            right = round(20 * value)
            make_pairs(run, {"rewards/accuracy": [1.0] * right + [0.0] * (20 - right)}, file="test_pairs.parquet")
    answer = write_summary(folder)
    assert "Best by rewards/accuracy (higher is better): loss.lam=1" in answer.text
    assert "On the test pairs loss.lam=1 has 0.6250 [" in answer.text
    assert "(95% interval, Student's t, 2 seeds and 20 pairs)" in answer.text.rpartition("On the test pairs")[2]
    assert content(folder)["settings"][1]["test"]["rewards/accuracy"]["mean"] == pytest.approx(0.625)
    assert content(folder)["points"][0]["test"] == {"rewards/accuracy": 0.9}
