"""Means over seeds with their 95% intervals, and whether two settings can be told apart."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

LEVEL = 0.95
MANY = 10  # from so many seeds on the interval is drawn from the seeds themselves, not from a normal distribution
RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds. deviation: the standard deviation of single seeds; low, high: the 95% interval of the mean;
    method: how the interval was found. All three are None for one seed, which says nothing about the spread."""

    n: int
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = "none: one seed"

    @property
    def symmetric(self) -> bool:
        """The interval reaches as far up as down; a bootstrap's need not."""
        return not self.method.startswith("bootstrap")


@dataclass(frozen=True)
class Difference:
    """How far the mean of a first setting is above a second one's. n: the pairs of runs, or the seeds of the smaller
    setting; low, high: None where one of the two has one seed; method: `paired t` over common seeds, or `Welch t`."""

    mean: float
    n: int
    low: float | None = None
    high: float | None = None
    method: str = "none: one seed"

    @property
    def clear(self) -> bool:
        """The 95% interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value or more, by Student's t for few and by bootstrap for many."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Estimate(1, mean)
    deviation = statistics.stdev(values)
    if n >= MANY and deviation > 0:
        return Estimate(n, mean, deviation, *bootstrap(values), f"bootstrap (BCa), {n} seeds")
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return Estimate(n, mean, deviation, mean - half, mean + half, f"Student's t, {n} seeds")


def difference(first: Mapping[Any, float], second: Mapping[Any, float]) -> Difference:
    """Compare two settings by their values for each seed; where two seeds or more are common, by those alone."""
    common = sorted(first.keys() & second.keys(), key=str)
    if len(common) >= 2:
        found = [first[seed] - second[seed] for seed in common]
        mean = math.fsum(found) / len(found)
        half = t_quantile(len(found) - 1) * statistics.stdev(found) / math.sqrt(len(found))
        return Difference(mean, len(found), mean - half, mean + half, "paired t")
    mean = statistics.fmean(first.values()) - statistics.fmean(second.values())
    n = min(len(first), len(second))
    if n == 1:
        return Difference(mean, 1)
    parts = [statistics.variance(side.values()) / len(side) for side in (first, second)]
    half = 0.0
    if sum(parts) > 0:  # Welch and Satterthwaite's degrees of freedom
        freedom = sum(parts) ** 2 / sum(
            part**2 / (len(side) - 1) for part, side in zip(parts, (first, second), strict=True)
        )
        half = t_quantile(freedom) * math.sqrt(sum(parts))
    return Difference(mean, n, mean - half, mean + half, "Welch t")


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the mean by bootstrap, bias-corrected and accelerated (Efron 1987); the same at every call.

    `values` must not all be equal.
    """
    import numpy

    sample = numpy.asarray(values, dtype=numpy.float64)
    n, mean = len(sample), sample.mean()
    draws = numpy.random.default_rng(0).integers(0, n, size=(RESAMPLES, n))
    means = numpy.sort(sample[draws].mean(axis=1))
    normal = statistics.NormalDist()
    below = (numpy.count_nonzero(means < mean) + numpy.count_nonzero(means <= mean)) / (2 * RESAMPLES)
    bias = normal.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    away = sample - mean  # of a mean, what the jackknife gives is proportional to this
    acceleration = float((away**3).sum() / (6 * (away**2).sum() ** 1.5))

    def end(tail: float) -> float:
        z = bias + normal.inv_cdf(tail)
        return float(numpy.quantile(means, normal.cdf(bias + z / (1 - acceleration * z))))

    return end((1 - LEVEL) / 2), end((1 + LEVEL) / 2)


@cache
def t_quantile(freedom: float) -> float:
    """The half-width in standard errors of a 95% interval: the 97.5% quantile of Student's t."""
    low, high = 0.0, 1.0
    while t_outside(high, freedom) > 1 - LEVEL:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_outside(middle, freedom) > 1 - LEVEL else (low, middle)
    return (low + high) / 2


def t_outside(t: float, freedom: float) -> float:
    """The probability that Student's t lies further from 0 than `t`."""
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1, by its continued fraction (DLMF 8.17.22)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    # 1 / (1 + d1 / (1 + d2 / (1 + ...))), from the innermost term outwards
    value = 1.0
    for term in range(500, 0, -1):
        m = term // 2
        if term % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        value = 1 + d / value
    return math.exp(log_front) / (a * value)
