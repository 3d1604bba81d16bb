"""Means over seeds with their 95% intervals, and how far the best setting is ahead of the others."""

import bisect
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orpo_exp.sweeps.held_out import Values, apart, pair_part
from orpo_exp.sweeps.intervals import LEVEL, PairPart, Quantile, critical, half_widths, residual

MANY = 10  # from so many seeds on, without pairs, the interval is drawn from the seeds themselves
RESAMPLES = 10_000
MOST_SEEDS = 1000
ALIKE = "none: no two values differ"
ONE = "none: one seed"


@dataclass(frozen=True)
class Sample:
    """A metric of one setting. values: by seed. pairs: the same pair by pair, of all seeds or of none. bounds: what the
    metric lies between, None where it has no such end."""

    values: Mapping[str, float]
    pairs: Mapping[str, Values] = field(default_factory=dict)
    bounds: tuple[float | None, float | None] = (None, None)

    @property
    def mean(self) -> float:
        """Over the seeds, of which there is one at least."""
        return math.fsum(self.values.values()) / len(self.values)

    @property
    def width(self) -> tuple[float, ...]:
        """The largest differences that there can be, both ways."""
        low, high = self.bounds
        return () if low is None or high is None else (low - high, high - low)

    def pair_part(self, added: tuple[float, ...]) -> PairPart | None:
        """What the held-out pairs do to the mean."""
        return pair_part(list(self.pairs.values()), added) if self.pairs else None


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds. deviation: the standard deviation of single seeds; low, high: the 95% interval of the mean,
    as far as the metric's bounds; method: how it was found. All three are None where nothing tells of chance. pairs:
    how many held-out pairs the interval takes for a sample of all pairs; 0: it knows of seeds alone."""

    n: int
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = ONE
    pairs: int = 0

    @property
    def symmetric(self) -> bool:
        """The interval reaches as far up as down; a bootstrap's need not, nor one that ends where the metric does."""
        if self.low is None or self.high is None:
            return True
        return math.isclose(self.high - self.mean, self.mean - self.low, rel_tol=1e-9)


@dataclass(frozen=True)
class Difference:
    """How far the mean of a first setting is above a second one's.

    n: the pairs of runs, or the seeds of the smaller setting. low, high: None where nothing tells of chance. method:
    how they were found. common: whether runs of the same seeds were compared. pairs: as in Estimate. settings: of how
    many the first was picked, against all of which the end at 0 holds together. from_seeds, from_pairs: the variance of
    the difference by where it comes from. clusters: different prompts.
    """

    mean: float
    n: int
    low: float | None = None
    high: float | None = None
    method: str = ONE
    common: bool = False
    pairs: int = 0
    settings: int = 2
    from_seeds: float = 0.0
    from_pairs: float = 0.0
    clusters: int = 0

    @property
    def clear(self) -> bool:
        """The 95% interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def seeds_needed(self) -> int | None:
        """About how many seeds would tell the two apart, were the difference to stay what it is; None: no number."""
        if self.low is None or self.n < 2 or self.mean == 0:
            return None
        from_pairs = critical(self.settings, self.clusters - 1) ** 2 * self.from_pairs if self.pairs else 0.0

        def enough(seeds: int) -> bool:
            from_seeds = critical(self.settings, seeds - 1) ** 2 * self.from_seeds * self.n / seeds
            return from_seeds + from_pairs < self.mean**2

        # halved again and again: a quantile of the studentized range takes a good part of a second
        counts = range(2, MOST_SEEDS + 1)
        place = bisect.bisect_left(counts, True, key=enough)
        return counts[place] if place < len(counts) else None

    def pairs_needed(self) -> int | None:
        """About how many held-out pairs would, with as many seeds; None: no number, or not known."""
        if self.low is None or not self.pairs or self.mean == 0:
            return None
        from_seeds = critical(self.settings, self.n - 1) ** 2 * self.from_seeds if self.n > 1 else 0.0
        from_pairs = critical(self.settings, self.clusters - 1) ** 2 * self.from_pairs
        left = self.mean**2 - from_seeds
        return math.ceil(self.pairs * from_pairs / left) if left > 0 and from_pairs > 0 else None


def estimate(sample: Sample) -> Estimate:
    """The mean of one seed or more; without pairs by Student's t for few seeds and by bootstrap for many."""
    values = list(sample.values.values())
    n, mean = len(values), sample.mean
    low, high = sample.bounds
    part = sample.pair_part(() if low is None or high is None else (low, low, high, high))
    deviation = statistics.stdev(values) if n > 1 else None
    if part is None and deviation is None:
        return Estimate(n, mean)
    if part is None and n >= MANY and deviation:
        return Estimate(n, mean, deviation, *bootstrap(values, deviation), f"bootstrap (BCa), {n} seeds")
    below, above = half_widths(None if deviation is None else deviation**2, n, part)
    if not below:
        return Estimate(n, mean, deviation, method=ALIKE)
    pairs = pairs_of(sample.pairs)
    # beyond its bounds there is no mean; where a value lies beyond what was declared, that is no bound
    least = -math.inf if low is None else min(low, mean)
    most = math.inf if high is None else max(high, mean)
    ends = max(float(mean - below), least), min(float(mean + above), most)
    return Estimate(n, mean, deviation, *ends, "Student's t, " + counted(n, pairs), pairs)


def leads(best: Sample, others: Sequence[Sample], sign: float, picked: Quantile | None = None) -> list[Difference]:
    """How far the best of several settings is above each of the others; sign: 1, or -1 where low is good, of which then
    the end near 0 is the upper one. picked: what this end rests on, see half_widths."""
    import numpy

    settings = [best, *others]
    shared = sorted(set.intersection(*(set(sample.values) for sample in settings)))
    common = None
    if len(others) > 1 and len(shared) > 1:
        table = numpy.array([[sample.values[seed] for seed in shared] for sample in settings])
        common = 2 * residual(table)
    return [lead(best, other, sign, len(settings), common, picked) for other in others]


def lead(
    best: Sample, other: Sample, sign: float, settings: int, common: float | None, picked: Quantile | None = None
) -> Difference:
    """One of them. common: variance of one seed's difference, as all settings together say it."""
    seeds = sorted(best.values.keys() & other.values.keys())
    most, least = max(len(best.values), len(other.values)), min(len(best.values), len(other.values))
    if len(seeds) < 2 and least > 1:
        return by_welch(best, other, sign, settings, picked)
    if len(seeds) < 2 and most > 1:
        return Difference(best.mean - other.mean, 1, settings=settings)
    # several common seeds, or a single run each
    runs = list(zip(seeds, seeds, strict=True)) or list(zip(best.values, other.values, strict=True))
    found = [best.values[a] - other.values[b] for a, b in runs]
    plain = Difference(math.fsum(found) / len(found), len(found), common=bool(seeds), settings=settings)
    part, pairs = paired(best, other, runs)
    if len(found) == 1:
        if part is None:
            return plain
        return with_ends(plain, half_widths(None, 1, part, settings, picked=picked), sign, part, pairs, 0.0, "t")
    variance = statistics.variance(found)
    widths = half_widths(variance, len(found), part, settings, common=common, picked=picked)
    return with_ends(plain, widths, sign, part, pairs, variance / len(found), "paired t")


def paired(best: Sample, other: Sample, runs: Sequence[tuple[str, str]]) -> tuple[PairPart | None, int]:
    """What the held-out pairs do to the mean difference over these runs, pair by pair, and how many pairs that are.

    None and 0 where a setting has no pairs. A single run each may have pairs of its own.
    """
    if not best.pairs or not other.pairs:
        return None, 0
    differences = [less for a, b in runs if (less := best.pairs[a].less(other.pairs[b])) is not None]
    if len(differences) == len(runs):
        return pair_part(differences, best.width), min(len(less.values) for less in differences)
    if len(runs) > 1:
        return None, 0
    (a, b) = runs[0]
    ours, theirs = pair_part([best.pairs[a]], best.width), pair_part([other.pairs[b]], other.width)
    return apart(ours, theirs, (1, 1)), min(pairs_of(best.pairs), pairs_of(other.pairs))


def by_welch(best: Sample, other: Sample, sign: float, settings: int, picked: Quantile | None) -> Difference:
    """Over seeds that differ, with the degrees of freedom of Welch and Satterthwaite."""
    sides = [list(sample.values.values()) for sample in (best, other)]
    fewest = min(map(len, sides))
    plain = Difference(best.mean - other.mean, fewest, settings=settings)
    each = [statistics.variance(side) / len(side) for side in sides]
    freedom = float(fewest - 1)
    if sum(each) > 0:
        freedom = sum(each) ** 2 / sum(of**2 / (len(side) - 1) for of, side in zip(each, sides, strict=True))
    ours, theirs = best.pair_part(best.width), other.pair_part(other.width)
    part = apart(ours, theirs, (len(sides[0]), len(sides[1]))) if ours and theirs else None
    pairs = min(pairs_of(best.pairs), pairs_of(other.pairs)) if part else 0
    widths = half_widths(sum(each), 1, part, settings, freedom, picked=picked)
    return with_ends(plain, widths, sign, part, pairs, sum(each), "Welch t")


def with_ends(
    plain: Difference,
    widths: Sequence[float],
    sign: float,
    part: PairPart | None,
    pairs: int,
    from_seeds: float,
    method: str,
) -> Difference:
    """A difference with its interval, whose end on the side of 0 holds for all rivals."""
    below, above = map(float, widths if sign > 0 else reversed(widths))
    if not below:
        return replace(plain, method=ALIKE)
    return replace(
        plain,
        low=plain.mean - below,
        high=plain.mean + above,
        method=f"{method}, {counted(plain.n, pairs)}",
        pairs=pairs,
        from_seeds=from_seeds,
        from_pairs=float(part.within if plain.n == 1 else part.shared * part.between) if part else 0.0,
        clusters=part.clusters if part else 0,
    )


def pairs_of(pairs: Mapping[str, Values]) -> int:
    """How many held-out pairs a run has, the smallest number of several."""
    return min((len(of.values) for of in pairs.values()), default=0)


def counted(seeds: int, pairs: int) -> str:
    """`3 seeds and 64 pairs`."""
    said = "one seed" if seeds == 1 else f"{seeds} seeds"
    return f"{said} and {pairs:,} pairs" if pairs else said


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
