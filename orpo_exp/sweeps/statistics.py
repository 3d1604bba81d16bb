"""Means over seeds with their 95% intervals, and whether two settings can be told apart."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        return Estimate(n, mean, deviation, *bootstrap(values, deviation), f"bootstrap (BCa), {n} seeds")
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
    sides = (first, second)
    parts = [statistics.variance(side.values()) / len(side) for side in sides]
    half = 0.0
    if sum(parts) > 0:  # Welch and Satterthwaite's degrees of freedom
        freedom = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
        half = t_quantile(freedom) * math.sqrt(sum(parts))
    return Difference(mean, n, mean - half, mean + half, "Welch t")


def bootstrap(values: Sequence[float], deviation: float) -> tuple[float, float]:
    """The 95% interval of the mean by bootstrap, bias-corrected and accelerated (Efron 1987); the same at every call.

    deviation: of the values, not 0.
    """
    import numpy
    from scipy import stats

    # values that hardly differ would drown in rounding; a power of two rounds nothing, for equal means must stay equal
    scale = 2.0 ** math.floor(math.log2(deviation))
    standard = (numpy.asarray(values) - values[0]) / scale
    seeded = numpy.random.default_rng(0)
    found = stats.bootstrap([standard], numpy.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, rng=seeded)
    low, high = found.confidence_interval
    return values[0] + scale * float(low), values[0] + scale * float(high)


def t_quantile(freedom: float) -> float:
    """The half-width in standard errors of a 95% interval: the 97.5% quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))
