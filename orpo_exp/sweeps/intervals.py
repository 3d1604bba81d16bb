"""95% intervals that know two sources of chance: which seeds were run, and which pairs were held out.

What seed k measures on pair i is taken as `mean + seed_k + pair_i + rest_ki`. Seeds' means vary by what a seed does,
by the rest, and by the pairs as far as seeds have pairs of their own; the part of the pairs that all seeds share cannot
be seen in how seeds vary, and is added as a second, independent part whose half-width is combined with the first one's
as the legs of a right triangle (Howe 1974; Graybill and Wang 1980, MOVER):

    half-width^2 = (c1 * s_seeds / sqrt(K))^2 + shared * (c2 * s_pairs / sqrt(n))^2

shared: the share of its held-out pairs that a seed has in common with another one; 1: one set for all, 0: a set each.

With several settings the best one was picked by the same numbers. Its lead over each of the others then has a lower end
that holds for all of them at once: c1 and c2 are quantiles of the studentized range (Tukey), s_seeds is the lead's own
deviation moderated by that of all settings together (as Smyth 2004 does), at least its own. The upper end, which the
picking does not flatter, has Student's t.

All functions take numbers, or arrays with leading axes for many sweeps at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

Numbers = Any  # a float or an array of NumPy's
Quantile = Callable[[int, float], float]  # of so many settings and degrees of freedom

LEVEL = 0.95
PRIOR = 2.5  # seeds' worth of freedom that all settings together lend to the deviation of one lead
LEAST = 0.25  # of the variance that the pairs alone would give seeds of separate sets, which agreeing seeds are given


@dataclass(frozen=True)
class PairPart:
    """What the held-out pairs do to a mean. within: variance of one seed's mean over its pairs, averaged over the
    seeds, (...). between: that of the mean of all seeds over the pairs, as many as one seed has, (...).
    shared: of one seed's pairs with another's, 0 to 1. clusters: groups of pairs with one prompt.
    """

    within: Numbers
    between: Numbers
    shared: float
    clusters: int


def variance_of_mean(values: Numbers, starts: Numbers, added: tuple[float, ...] = ()) -> Numbers:
    """The variance of the mean of n values that come in clusters, and that alone are independent.

    values: (..., n), cluster by cluster. starts: (clusters,), where each begins. added: values that stand as further
    clusters of one, so that pairs that all agree are not taken for proof that all pairs would (Bonett and Price 2012
    add -1 and 1 to differences of paired proportions; Agresti and Coull 1998 two of each kind to a proportion).
    """
    import numpy

    n, clusters = values.shape[-1] + len(added), len(starts) + len(added)
    mean = (values.sum(-1) + math.fsum(added)) / n
    sums = numpy.add.reduceat(values - mean[..., None], starts, axis=-1)
    squares = (sums**2).sum(-1) + sum((of - mean) ** 2 for of in added)
    return squares / n**2 * (clusters / (clusters - 1))


def residual(values: Numbers) -> Numbers:
    """The mean square of what a table (..., settings, seeds) holds beyond its rows and columns; twice this is the
    variance of one seed's difference between two settings, where all settings vary alike."""
    settings, seeds = values.shape[-2:]
    rest = values - values.mean(-1, keepdims=True) - values.mean(-2, keepdims=True)
    rest = rest + values.mean((-2, -1), keepdims=True)
    return (rest**2).sum((-2, -1)) / ((settings - 1) * (seeds - 1))


def half_widths(
    variance: Numbers | None,
    seeds: float,
    pairs: PairPart | None,
    settings: int = 1,
    freedom: float | None = None,
    common: Numbers | None = None,
    picked: Quantile | None = None,
) -> tuple[Numbers, Numbers]:
    """How far an interval reaches below and above a mean over seeds, or a lead of the best of so many settings.

    variance: (...), of the seeds' values or differences; None for one seed: the interval then speaks for this seed, on
    other pairs. seeds: how many. freedom: the variance's degrees of freedom, if not one less than the seeds. common:
    (...), the variance as all settings together say it. picked: what the lower end rests on, `critical` if not given.
    Without pairs it speaks for other seeds on these pairs.
    """
    import numpy

    lowest = picked or critical

    if variance is None:
        assert pairs is not None, "one seed without pairs has no interval"
        deviation = numpy.sqrt(pairs.within)
        others = pairs.clusters - 1
        return lowest(settings, others) * deviation, t_quantile(others) * deviation
    freedom = seeds - 1 if freedom is None else freedom
    below, above, further = variance, variance, 0.0
    if common is not None and settings > 2:
        moderated = (PRIOR * common + freedom * variance) / (PRIOR + freedom)
        below, further = numpy.maximum(moderated, variance), min(PRIOR, (settings - 2) * freedom / 4)
    if pairs is not None:
        least = LEAST * (1 - pairs.shared) * pairs.within
        below, above = numpy.maximum(below, least), numpy.maximum(above, least)
    lower = lowest(settings, freedom + further) ** 2 * below / seeds
    upper = t_quantile(freedom) ** 2 * above / seeds
    if pairs is not None:
        lower = lower + pairs.shared * lowest(settings, pairs.clusters - 1) ** 2 * pairs.between
        upper = upper + pairs.shared * t_quantile(pairs.clusters - 1) ** 2 * pairs.between
    return numpy.sqrt(lower), numpy.sqrt(upper)


@cache
def critical(settings: int, freedom: float) -> float:
    """How many standard errors of a difference the largest of so many equal settings is ahead of the smallest in 5% of
    all cases; for one or two Student's t."""
    from scipy.stats import studentized_range

    if settings <= 2:
        return t_quantile(freedom)
    return float(studentized_range.ppf(LEVEL, settings, freedom)) / math.sqrt(2)


@cache
def ahead_of_one(settings: int, freedom: float, wrong: float) -> float:
    """How many standard errors of a difference any of so many equal settings is ahead of a given one in a share `wrong`
    of all cases (Dunnett 1955, one-sided)."""
    import numpy
    from scipy.optimize import brentq
    from scipy.special import ndtr
    from scipy.stats import chi2

    nodes, weights = numpy.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    points, shares = numpy.polynomial.legendre.leggauss(80)
    deviations = numpy.sqrt(chi2.ppf((points + 1) / 2, freedom) / freedom)

    def share(quantile: float) -> float:
        below = ndtr(nodes + math.sqrt(2) * quantile * deviations[:, None]) ** (settings - 1)
        return 1 - float(shares / 2 @ below @ weights)

    return float(brentq(lambda quantile: share(quantile) - wrong, 0.0, 1e4))


def t_quantile(freedom: float) -> float:
    """The half-width in standard errors of a 95% interval: the 97.5% quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))
