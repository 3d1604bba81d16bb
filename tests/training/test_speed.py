"""What is told of speed is of training alone, and of the very steps that are counted."""

import pytest
from support import random_pairs

from orpo_exp.training import metrics
from orpo_exp.training.metrics import Speed


class Clock:
    """Seconds that pass when it is said."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def test_samples_and_checks_before_training_are_not_booked(clock):
    speed = Speed()
    clock.now += 50
    with speed.paused():
        clock.now += 50
    with speed.running():
        clock.now += 2
        speed.count(random_pairs(8, 50))
        assert speed.since_last()["pairs_per_second"] == 4
        with speed.paused():
            clock.now += 100
        clock.now += 1
        speed.count(random_pairs(8, 50))
        assert speed.since_last()["pairs_per_second"] == 8
    clock.now += 100
    assert speed.overall()["pairs_per_second"] == pytest.approx(16 / 3)


def test_stopped_between_two_logs_the_rate_is_that_of_all_steps(clock):
    """Ten steps of a second, the last log after the eighth: as many seconds as steps."""
    speed = Speed()
    with speed.running():
        for step in range(1, 11):
            clock.now += 1
            speed.count(random_pairs(8, 50))
            if step == 8:
                speed.since_last()
    assert speed.overall()["pairs_per_second"] == 8
    resumed = Speed()
    resumed.load_state_dict(speed.state_dict())
    with resumed.running():
        clock.now += 2
        resumed.count(random_pairs(8, 50))
        assert resumed.since_last()["pairs_per_second"] == 4
    assert resumed.overall()["pairs_per_second"] == pytest.approx(88 / 12)


def test_before_the_first_step_there_is_no_rate():
    assert Speed().overall() == {"pairs_per_second": None, "tokens_per_second": None}
