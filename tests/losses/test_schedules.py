import math

import pytest

from orpo_exp.cli import check, compose
from orpo_exp.losses import LAM_SCHEDULES
from orpo_exp.losses.adaptive import Balanced, TargetMargin
from orpo_exp.losses.schedules import Constant, CosineDecay, Cyclic, LinearDecay, LinearWarmup, Step, Wave
from orpo_exp.schema import ConfigError

FIXED = (Constant, LinearWarmup, LinearDecay, CosineDecay, Step, Cyclic)


@pytest.mark.parametrize(
    ("schedule", "settings", "expected"),
    [
        (Constant, {}, {1: 0.4, 51: 0.4, 101: 0.4}),
        (LinearWarmup, {"steps": None}, {1: 0.0, 51: 0.2, 101: 0.4}),
        (LinearWarmup, {"steps": 11, "initial": 0.5}, {1: 0.2, 6: 0.3, 11: 0.4, 101: 0.4}),
        (LinearWarmup, {"steps": 0}, {1: 0.4, 101: 0.4}),
        (LinearWarmup, {}, {1: 0.0, 13: 0.2, 25: 0.4, 101: 0.4}),
        (LinearDecay, {}, {1: 0.4, 51: 0.2, 101: 0.0}),
        (LinearDecay, {"steps": 51, "final": 0.5}, {1: 0.4, 26: 0.3, 51: 0.2, 101: 0.2}),
        (CosineDecay, {}, {1: 0.4, 26: 0.2 * (1 + math.sqrt(0.5)), 51: 0.2, 101: 0.0}),
        (CosineDecay, {"final": 0.5}, {1: 0.4, 51: 0.3, 101: 0.2}),
        (Step, {}, {1: 0.4, 50: 0.4, 51: 0.2, 76: 0.2, 77: 0.1, 101: 0.1}),
        (Step, {"factor": 2.0, "at": [10, 20]}, {10: 0.4, 11: 0.8, 20: 0.8, 21: 1.6}),
        (Step, {"factor": 0.0, "at": [10]}, {10: 0.4, 11: 0.0, 101: 0.0}),
        (Step, {"at": []}, {1: 0.4, 101: 0.4}),
        (Cyclic, {"cycles": 1.0}, {1: 0.4, 26: 0.2, 51: 0.0, 76: 0.2, 101: 0.4}),
        (Cyclic, {"cycles": 2.0, "low": 0.5}, {1: 0.4, 26: 0.2, 51: 0.4, 76: 0.2, 101: 0.4}),
        (Cyclic, {"cycles": 1.0, "wave": Wave.triangle}, {1: 0.4, 11: 0.32, 51: 0.0, 101: 0.4}),
        (Cyclic, {"cycles": 1.5, "wave": Wave.triangle}, {1: 0.4, 101: 0.0}),
    ],
)
def test_values(schedule, settings, expected):
    made = schedule(schedule.Config(**settings), 0.4, 101)
    assert {step: made.weight(step) for step in expected} == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", FIXED)
def test_fixed_schedules_know_the_step_alone(schedule):
    for total in (1, 2, 3, 100):
        made = schedule(schedule.Config(), 0.1, total)
        before = [made.weight(step) for step in range(1, total + 1)]
        made.update({"log_odds_ratio": 3.0})
        assert made.state_dict() == {}
        made.load_state_dict({})
        assert [made.weight(step) for step in range(total, 0, -1)] == before[::-1]
        assert all(0 <= weight <= 0.1 for weight in before)
        assert schedule(schedule.Config(), 0.0, total).weight(total) == 0


def test_the_ends_are_exact():
    assert LinearWarmup(LinearWarmup.Config(steps=7), 0.1, 50).weight(7) == 0.1
    assert LinearDecay(LinearDecay.Config(), 0.1, 7).weight(7) == 0
    assert CosineDecay(CosineDecay.Config(), 0.1, 7).weight(7) == 0
    assert Cyclic(Cyclic.Config(), 0.1, 7).weight(7) == 0.1


@pytest.mark.parametrize(
    ("schedule", "settings", "key"),
    [
        (LinearWarmup, {"steps": 1.5}, "steps"),
        (LinearDecay, {"steps": -1}, "steps"),
        (LinearWarmup, {"initial": 1.1}, "initial"),
        (CosineDecay, {"final": math.nan}, "final"),
        (Step, {"at": [0.5, 2.5]}, "at"),
        (Step, {"at": [math.inf]}, "at"),
        (Step, {"factor": -1.0}, "factor"),
        (Cyclic, {"cycles": 0.0}, "cycles"),
        (TargetMargin, {"target": math.inf}, "target"),
        (TargetMargin, {"rate": 0.0}, "rate"),
        (Balanced, {"target": 0.0}, "target"),
        (Balanced, {"min_factor": 0.0}, "min_factor"),
        (Balanced, {"max_factor": 0.5}, "max_factor"),
    ],
)
def test_ranges(schedule, settings, key):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        schedule.Config(**settings)


@pytest.mark.parametrize("schedule", [TargetMargin, Balanced])
def test_adaptive_schedules_need_a_weight_to_start_from(schedule):
    with pytest.raises(ConfigError, match="above 0"):
        schedule(schedule.Config(), 0.0, 100)


def test_target_margin_converges_on_a_plant_that_answers_late():
    """The margin follows 2 * weight with a lag of ten steps; the target asks for a weight of 0.5."""
    schedule = TargetMargin(TargetMargin.Config(target=1.0, rate=0.03), 0.1, 1000)
    margin = 0.0
    for step in range(1, 1001):
        margin += 0.1 * (2.0 * schedule.weight(step) - margin)
        schedule.update({"log_odds_ratio": margin})
    assert margin == pytest.approx(1.0, abs=1e-3)
    assert schedule.weight(1000) == pytest.approx(0.5, abs=1e-3)


def test_balanced_converges_and_follows_the_terms():
    schedule = Balanced(Balanced.Config(target=0.25, rate=0.1), 0.1, 1000)
    for odds_ratio_loss, nll_loss in ((0.7, 2.0), (0.3, 1.0), (0.9, 0.5)):
        for _ in range(300):
            schedule.update({"odds_ratio_loss": odds_ratio_loss, "nll_loss": nll_loss})
        assert schedule.weight(1) * odds_ratio_loss / nll_loss == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("far", [1e-300, 1.0, 1e300])
def test_a_step_is_bounded_and_so_is_the_weight(far):
    up, down = ({"log_odds_ratio": sign * far, "odds_ratio_loss": 0.0, "nll_loss": far} for sign in (-1, 1))
    for schedule, first, then in (
        (TargetMargin(TargetMargin.Config(target=0.0, rate=1.0), 0.1, 100), up, down),
        (Balanced(Balanced.Config(rate=1.0), 0.1, 100), up, {"odds_ratio_loss": far, "nll_loss": 0.0}),
    ):
        for metrics, limit in ((first, 1.0), (then, 0.01)):
            for step in range(1, 201):
                before = schedule.weight(step)
                schedule.update(metrics)
                assert abs(math.log(schedule.weight(step + 1) / before)) <= 1.0 + 1e-12
                assert 0.01 * (1 - 1e-12) <= schedule.weight(step) <= 1.0
            if far >= 1:
                assert schedule.weight(200) == pytest.approx(limit)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_metrics_that_are_not_finite_are_ignored(bad):
    margin, balanced = TargetMargin(TargetMargin.Config(), 0.1, 9), Balanced(Balanced.Config(), 0.1, 9)
    margin.update({"log_odds_ratio": bad})
    balanced.update({"odds_ratio_loss": bad, "nll_loss": 1.0})
    balanced.update({"odds_ratio_loss": 1.0, "nll_loss": bad})
    balanced.update({"odds_ratio_loss": 0.0, "nll_loss": 0.0})
    assert (margin.weight(1), balanced.weight(1)) == (0.1, 0.1)


@pytest.mark.parametrize("schedule", [TargetMargin, Balanced])
def test_a_resumed_controller_goes_on_bit_for_bit(schedule):
    metrics = [{"log_odds_ratio": x, "odds_ratio_loss": 0.5 + x, "nll_loss": 2 - x} for x in (0.3, 0.7, -0.2, 1.3)]
    straight = schedule(schedule.Config(), 0.1, 100)
    for row in metrics[:2]:
        straight.update(row)
    resumed = schedule(schedule.Config(), 0.1, 100)
    resumed.load_state_dict(straight.state_dict())
    for row in metrics[2:]:
        straight.update(row)
        resumed.update(row)
    assert resumed.weight(5) == straight.weight(5) != 0.1
    resumed.load_state_dict({"factor": 1e9})  # of a run with wider bounds
    assert resumed.weight(5) == pytest.approx(1.0)


OPTIONS = ("constant", "linear_warmup", "linear_decay", "cosine_decay", "step", "cyclic", "target_margin", "balanced")


@pytest.mark.parametrize("option", OPTIONS)
def test_each_is_an_option(option):
    overrides = ["+experiment=quickstart", f"lam_schedule={option}"]
    config = check(compose(overrides, None), overrides).config.lam_schedule
    schedule = LAM_SCHEDULES.build(config, 0.1, 100)
    assert schedule.varies == (option != "constant")
    assert schedule.weight(1) == (0.0 if option == "linear_warmup" else 0.1)
