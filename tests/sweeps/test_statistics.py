import math
import random
from statistics import NormalDist

import numpy
import pytest
import scipy.stats

from orpo_exp.sweeps import statistics
from orpo_exp.sweeps.intervals import t_quantile
from orpo_exp.sweeps.statistics import Difference, Sample, leads
from orpo_exp.sweeps.statistics import estimate as of_sample


def estimate(values):
    return of_sample(Sample(dict(enumerate(map(float, values)))))


def difference(first, second):
    return leads(Sample(first), [Sample(second)], 1.0)[0]


# 97.5% quantiles from a printed table of Student's t
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 20: 2.086, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_the_tables(freedom):
    assert t_quantile(freedom) == pytest.approx(TABLE[freedom], abs=5e-4)


def test_quantiles_are_right_where_a_formula_is_known():
    assert t_quantile(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-10)
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-10)
    assert t_quantile(1e6) == pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-5)
    assert t_quantile(2) < t_quantile(1.5) < t_quantile(1)


def test_few_seeds_get_students_interval():
    found = estimate([1.0, 2.0, 6.0])  # deviation sqrt(7), standard error sqrt(7/3)
    half = 4.302653 * math.sqrt(7 / 3)
    assert (found.n, found.mean) == (3, 3.0)
    assert found.deviation == pytest.approx(math.sqrt(7))
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert found.method == "Student's t, 3 seeds"


def test_an_interval_ends_where_the_metric_does():
    half = 4.302653 * 0.01  # deviation 0.01 sqrt(3)
    values = {"0": 0.97, "1": 1.0, "2": 0.97}
    found = of_sample(Sample(values, bounds=(0.0, 1.0)))
    assert (found.low, found.high) == (pytest.approx(0.98 - half, rel=1e-6), 1.0)
    assert not found.symmetric
    for bounds in ((0.0, None), (None, None), (0.0, 2.0)):
        found = of_sample(Sample(values, bounds=bounds))
        assert found.high == pytest.approx(0.98 + half, rel=1e-6)
        assert found.symmetric
    below = of_sample(Sample({seed: -value for seed, value in values.items()}, bounds=(-1.0, 0.0)))
    assert (below.low, below.high) == (-1.0, pytest.approx(half - 0.98, rel=1e-6))
    beyond = of_sample(Sample(values, bounds=(0.0, 0.5)))  # declared wrongly
    assert beyond.low < beyond.mean == beyond.high


def test_one_seed_has_no_interval():
    found = estimate([0.7])
    assert (found.mean, found.deviation, found.low, found.high, found.method) == (
        0.7,
        None,
        None,
        None,
        "none: one seed",
    )


def test_that_seeds_agree_is_no_interval_without_width():
    for n in (2, 12):
        found = estimate([0.5] * n)
        assert (found.low, found.high, found.method) == (None, None, "none: no two values differ")
    assert difference({"0": 0.5, "1": 0.7}, {"0": 0.25, "1": 0.45}).low is not None  # 0.25 and about 0.25
    assert difference({"0": 0.5, "1": 0.75}, {"0": 0.25, "1": 0.5}).low is None


def naive_bca(values, resamples, seed):
    """The textbook's formulae with another generator of random numbers."""
    rng, normal, n = random.Random(seed), NormalDist(), len(values)
    mean = sum(values) / n
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(resamples))
    z0 = normal.inv_cdf(sum(m < mean for m in means) / resamples)
    left_out = [(sum(values) - v) / (n - 1) for v in values]
    centre = sum(left_out) / n
    a = sum((centre - v) ** 3 for v in left_out) / (6 * sum((centre - v) ** 2 for v in left_out) ** 1.5)

    def end(p):
        z = z0 + normal.inv_cdf(p)
        return means[int(normal.cdf(z0 + z / (1 - a * z)) * resamples)]

    return end(0.025), end(0.975)


def test_many_seeds_get_a_bootstrap_interval():
    values = [random.Random(i).expovariate(1) for i in range(15)]
    found = estimate(values)
    low, high = naive_bca(values, 40_000, 7)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert found.high - found.mean > found.mean - found.low  # the values lean to the right, and so does the interval
    assert found == estimate(values)
    assert found.method == "bootstrap (BCa), 15 seeds"
    assert not found.symmetric


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[0.5] * 11 + [0.6], [0.0, 1.0] * 5, [1.0] * 9 + [1.0 + 2**-52]])
def test_seeds_that_hardly_differ_still_have_an_interval_around_their_mean(values):
    found = estimate(values)
    assert min(values) <= found.low <= found.mean <= found.high <= max(values)


@pytest.mark.parametrize("values", [[0.0] * 29 + [1.0], [0.75] * 3 + [1.0] * 8 + [0.5], [1.0] * 9 + [511 / 512]])
def test_few_different_values_have_the_interval_that_scipy_gives_them(values):
    """Many resampled means are equal, and count half."""
    rng = numpy.random.default_rng(0)
    expected = scipy.stats.bootstrap([values], numpy.mean, n_resamples=10_000, rng=rng).confidence_interval
    found = estimate(values)
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-12)


def test_common_seeds_are_compared_in_pairs():
    first, second = {"0": 0.5, "1": 0.9, "2": 0.7}, {"0": 0.4, "1": 0.7, "2": 0.4, "9": 5.0}
    found = difference(first, second)  # 0.1, 0.2, 0.3: mean 0.2, deviation 0.1
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), rel=1e-6)
    assert (found.n, found.method, found.clear) == (3, "paired t, 3 seeds", False)
    assert difference({"0": 0.5, "1": 0.9}, {"0": 0.1, "1": 0.5001}).clear


def test_other_seeds_are_compared_by_welch():
    # equal variances 2 and sizes 2: standard error sqrt(2), two degrees of freedom
    found = difference({"0": 0.0, "1": 2.0}, {"1": 10.0, "3": 12.0})
    half = 4.302653 * math.sqrt(2)
    assert (found.mean, found.low, found.high) == pytest.approx((-10, -10 - half, -10 + half), rel=1e-6)
    assert (found.method, found.clear) == ("Welch t, 2 seeds", True)


def test_one_seed_tells_nothing_apart():
    found = difference({"0": 1.0}, {"0": 0.0, "1": 0.1})
    assert (found.mean, found.low, found.clear) == (0.95, None, False)


def test_how_many_seeds_are_needed_takes_few_quantiles(monkeypatch):
    """A quantile of the studentized range takes a good part of a second; a lead that no seeds tell apart took 999."""
    asked = []
    monkeypatch.setattr(statistics, "critical", lambda settings, freedom: asked.append(freedom) or 3.0 + 1 / freedom)
    tiny = Difference(0.001, 2, -1.0, 1.0, common=True, settings=3, from_seeds=0.1)
    assert tiny.seeds_needed() is None
    some = Difference(0.1, 2, -1.0, 1.0, common=True, settings=3, from_seeds=0.01)
    assert some.seeds_needed() == next(k for k in range(2, 1000) if (3 + 1 / (k - 1)) ** 2 * 0.02 / k < 0.01)
    assert len(asked) < 30
