"""Whether the intervals of a sweep's summary say what is true: made-up sweeps of which the truth is known.

    uv run python benchmarks/intervals.py                          # 10,000 sweeps a cell: some minutes on one core
    uv run python benchmarks/intervals.py --sweeps 1000 --cells own

A sweep has S settings with K seeds each, and n held-out pairs that are right or wrong: a setting gets a pair right if
a sum of normal deviates is above 0, of the setting's own skill, the pair (shared by all settings), the pair and the
setting, the seed (shared by all settings), the seed and the setting, and chance. So accuracies are discrete, pairs
agree between settings, and the truth, the accuracy over new seeds and new pairs, is known; with one seed it is that of
the seed over new pairs. Intervals are worked out by the functions that summaries use. Beside them stand those of the
version before: paired t over the seeds for each rival alone, no interval for one seed.

A cell passes where a lead's interval covers the truth in at least 93% of all leads, the best is said to be ahead of a
setting that is as good in at most 5% of sweeps, all rivals together, and intervals are on average at most 1.3 times as
wide as those before, where these do both as well (two seeds with a set of their own each aside). It fails where the
numbers of this simulation exclude that, one-sided, at 99.9%. Prints a table; exits with 1 where a cell fails.
"""

import argparse
import math
import sys
from dataclasses import dataclass

import numpy
from scipy.stats import binom, norm, t

from orpo_exp.sweeps.intervals import PairPart, Quantile, critical, half_widths, residual, variance_of_mean

COVERS, WRONG, WIDER, SURE = 0.93, 0.05, 1.3, 0.001
PAIR, CHANCE, LUCK = 1.0, 0.3, 0.1  # deviations: of a pair, of chance, of what a seed does to all settings
AT_ONCE = 4_000_000  # outcomes that are drawn at a time


@dataclass(frozen=True)
class Cell:
    """settings, seeds, pairs: S, K, n. sets: common, own, or overlapping (two thirds of a file each). spread: deviation
    of what a seed does to a setting. unequal: how many times that of the first setting. effect: by how much the first
    setting's skill is above the others'. apart: deviation of a pair and a setting. sharers: pairs with one prompt."""

    settings: int
    seeds: int
    pairs: int
    sets: str = "common"
    spread: float = 0.1
    unequal: float = 1.0
    effect: float = 0.0
    apart: float = 0.5
    sharers: int = 1

    @property
    def name(self) -> str:
        """All that it consists of."""
        said = f"S={self.settings} K={self.seeds} n={self.pairs} {self.sets} spread={self.spread:g}"
        more = {"unequal": (self.unequal, 1), "effect": (self.effect, 0), "apart": (self.apart, 0.5)}
        said += "".join(f" {name}={value:g}" for name, (value, usual) in more.items() if value != usual)
        return said + (f" {self.sharers} pairs a prompt" if self.sharers > 1 else "")


def cells() -> list[Cell]:
    """What is tried."""
    found = [Cell(s, k, 256, sets, spread) for s in (2, 6) for k in (2, 3, 5, 10) for sets in ("common", "own")
             for spread in (0.0, 0.3)]  # fmt: skip
    found += [Cell(s, 1, n) for s in (2, 4) for n in (64, 1000)]
    found += [Cell(3, k, 200, "overlapping", spread) for k in (2, 3, 5, 10) for spread in (0.0, 0.2)]
    found += [Cell(s, 3, 256, sets, 0.1, unequal=4) for s in (2, 3, 4, 6) for sets in ("common", "own")]
    found += [Cell(s, k, 256, "own", 0.3, effect=1.5) for s in (2, 3, 6) for k in (3, 5)]
    found += [Cell(s, 3, n, sets, 0.2, effect=0.2) for s, n in ((2, 64), (4, 1000)) for sets in ("common", "own")]
    found += [Cell(s, k, 64, sets, 0.0, apart=0.02) for s, k in ((2, 1), (2, 3), (4, 2)) for sets in ("common", "own")]
    found += [Cell(s, k, 240, sets, 0.1, sharers=4) for s, k in ((2, 1), (3, 3)) for sets in ("common", "own")]
    return list(dict.fromkeys(cell for cell in found if cell.seeds > 1 or cell.sets == "common"))


def skills(cell: Cell) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Each setting's skill and the deviation of what a seed does to it, such that the first is ahead by the effect."""
    spread = numpy.full(cell.settings, cell.spread)
    spread[0] *= cell.unequal
    over_pairs = PAIR**2 + cell.apart**2 + CHANCE**2
    ahead = numpy.r_[cell.effect, numpy.zeros(cell.settings - 1)]
    over_seeds = LUCK**2 + spread**2 if cell.seeds > 1 else 0.0
    return (0.4 + ahead) * numpy.sqrt(over_pairs + over_seeds), spread


def drawn(cell: Cell, sweeps: int, rng: numpy.random.Generator) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Outcomes (sweeps, S, K, n), which pairs they are of (sweeps, K, n), each setting's true accuracy (sweeps, S)."""
    s, k, n = cell.settings, cell.seeds, cell.pairs
    skill, spread = skills(cell)
    seeds = LUCK * rng.standard_normal((sweeps, 1, k)) + spread[:, None] * rng.standard_normal((sweeps, s, k))
    over_pairs = PAIR**2 + cell.apart**2 + CHANCE**2
    over_seeds = LUCK**2 + spread**2
    if k == 1:
        truth = norm.cdf((skill + seeds[..., 0]) / math.sqrt(over_pairs))
    else:
        truth = numpy.broadcast_to(norm.cdf(skill / numpy.sqrt(over_pairs + over_seeds)), (sweeps, s))
    in_file = {"common": n, "own": n * k, "overlapping": 3 * n // 2}[cell.sets]
    prompts = in_file // cell.sharers
    pair = PAIR * rng.standard_normal((sweeps, 1, prompts)) + cell.apart * rng.standard_normal((sweeps, s, prompts))
    pair = numpy.repeat(pair, cell.sharers, axis=-1)  # what a prompt does, it does to all its pairs
    if cell.sets == "common":
        which = numpy.broadcast_to(numpy.arange(n), (sweeps, k, n))
    elif cell.sets == "own":
        which = numpy.broadcast_to(numpy.arange(n * k).reshape(k, n), (sweeps, k, n))
    else:
        which = rng.random((sweeps, k, in_file)).argsort(-1)[..., :n]
    of_pair = numpy.take_along_axis(pair[:, :, None, :], which[:, None], axis=-1)
    latent = skill[:, None, None] + seeds[..., None] + of_pair + CHANCE * rng.standard_normal((sweeps, s, k, n))
    return (latent > 0).astype(float), which, truth


def pair_part(cell: Cell, differences: numpy.ndarray, which: numpy.ndarray) -> PairPart:
    """What the pairs do to leads; differences: (sweeps, S, K, n)."""
    n, k = cell.pairs, cell.seeds
    starts = numpy.arange(0, n, cell.sharers)
    within = variance_of_mean(differences, starts, (-1.0, 1.0)).mean(-1)
    if cell.sets == "common":
        between = variance_of_mean(differences.mean(2), starts, (-1.0, 1.0))
        return PairPart(within, between, 1.0, len(starts))
    if cell.sets == "own" or k == 1:
        return PairPart(within, within, 0.0, len(starts))
    in_file = 3 * n // 2
    between = numpy.zeros(differences.shape[:2])
    shared = numpy.zeros(len(differences))
    for sweep, (of_sweep, rows) in enumerate(zip(differences, which, strict=True)):
        count = numpy.bincount(rows.ravel(), minlength=in_file)
        there = count > 0
        sums = numpy.stack([numpy.bincount(rows.ravel(), setting.ravel(), in_file) for setting in of_sweep])
        means = sums[:, there] / count[there]
        between[sweep] = variance_of_mean(means, numpy.arange(there.sum()), (-1.0, 1.0)) * there.sum() / n
        shared[sweep] = (count * (count - 1)).sum() / (n * k * (k - 1))
    return PairPart(within, between, float(shared.mean()), n)


@dataclass(frozen=True)
class Leads:
    """Of the best setting of each made-up sweep over the others. best: (sweeps,) its place. of_seeds: (sweeps, S, K).
    lead, below, above: (sweeps, S), how far it is ahead, and how far the interval reaches down and up."""

    best: numpy.ndarray
    of_seeds: numpy.ndarray
    lead: numpy.ndarray
    below: numpy.ndarray
    above: numpy.ndarray

    @property
    def rivals(self) -> numpy.ndarray:
        """(sweeps, S): the settings that are not the best."""
        found: numpy.ndarray = self.best[:, None] != numpy.arange(self.lead.shape[1])
        return found


def leads_of(
    cell: Cell,
    outcomes: numpy.ndarray,
    which: numpy.ndarray,
    rng: numpy.random.Generator,
    picked: Quantile | None = None,
) -> Leads:
    """What summaries find in outcomes (sweeps, S, K, n), S settings or fewer; picked: what the lower ends rest on."""
    count, settings = outcomes.shape[:2]
    seeds, each = outcomes.mean(-1), numpy.arange(count)
    means = seeds.mean(-1)
    # of settings that are level any may come first
    best = (means + 1e-9 * rng.random(means.shape)).argmax(-1)
    of_seeds = seeds[each, best][:, None] - seeds
    part = pair_part(cell, outcomes[each, best][:, None] - outcomes, which)
    several = cell.seeds > 1
    variance = of_seeds.var(-1, ddof=1) if several else None
    common = 2 * residual(seeds)[:, None] if several and settings > 2 else None
    below, above = half_widths(variance, cell.seeds, part, settings, common=common, picked=picked)
    return Leads(best, of_seeds, of_seeds.mean(-1), below, above)


def before(differences: numpy.ndarray) -> numpy.ndarray:
    """Half-widths of the version before, from each seed's differences (sweeps, S, K)."""
    k = differences.shape[-1]
    if k == 1:
        return numpy.full(differences.shape[:2], numpy.inf)
    half: numpy.ndarray = t.ppf(0.975, k - 1) * differences.std(-1, ddof=1) / math.sqrt(k)
    return half


def tried(cell: Cell, sweeps: int, rng: numpy.random.Generator) -> tuple[list[str], bool]:
    """A row of the table, and whether the cell passes."""
    counts = numpy.zeros((2, 2))  # ours, before x leads missed, sweeps with a wrong claim
    widths, leads, done = numpy.zeros(2), 0, 0
    size = max(1, AT_ONCE // (cell.settings * cell.seeds * cell.pairs))
    while done < sweeps:
        count = min(size, sweeps - done)
        outcomes, which, truth = drawn(cell, count, rng)
        found = leads_of(cell, outcomes, which, rng)
        lead, rivals = found.lead, found.rivals
        true = truth[numpy.arange(count), found.best][:, None] - truth
        half = before(found.of_seeds)
        for i, (low, high) in enumerate([(lead - found.below, lead + found.above), (lead - half, lead + half)]):
            missed = ((true < low - 1e-12) | (true > high + 1e-12)) & rivals
            wrong = (low > 0) & (true <= 1e-12) & rivals
            counts[i] += missed.sum(), wrong.any(-1).sum()
            widths[i] += (high - low)[rivals].sum()
        leads, done = leads + int(rivals.sum()), done + count
    (missed, wrong), (missed_before, wrong_before) = counts
    # leads of one sweep hang together: a sweep counts once
    per_sweep = leads / sweeps
    covers = binom.cdf(missed / per_sweep - 1, sweeps, 1 - COVERS) <= 1 - SURE
    right = binom.cdf(wrong - 1, sweeps, WRONG) <= 1 - SURE
    sound = missed_before <= leads * (1 - COVERS) and wrong_before <= sweeps * WRONG
    wider = widths[0] / widths[1] if widths[1] else math.inf
    narrow = wider <= WIDER or not sound or cell.seeds == 1 or (cell.seeds == 2 and cell.sets == "own")
    row = [cell.name, f"{100 * (1 - missed / leads):.1f}", f"{100 * wrong / sweeps:.1f}"]
    if cell.seeds > 1:
        row += [f"{100 * (1 - missed_before / leads):.1f}", f"{100 * wrong_before / sweeps:.1f}"]
        row += [f"{wider:.2f}{'' if sound else ' (before does not hold)'}"]
    else:
        row += ["", "", ""]
    return row, bool(covers and right and narrow)


def main() -> int:
    """0 where every cell passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=10_000, help="made-up sweeps for each cell")
    parser.add_argument("--cells", default="", help="only those whose name contains this")
    args = parser.parse_args()
    chosen = [cell for cell in cells() if args.cells in cell.name]
    print(f"{len(chosen)} cells, {args.sweeps:,} sweeps each; Tukey for 6 settings and 20: {critical(6, 20):.3f}\n")
    print("| cell | covers, % | wrongly told apart, % | before: covers | before: wrongly | width over before | |")
    print("|---|---|---|---|---|---|---|", flush=True)
    failed = 0
    for number, cell in enumerate(chosen):
        row, passes = tried(cell, args.sweeps, numpy.random.default_rng(number))
        failed += not passes
        print(f"| {' | '.join(row)} | {'' if passes else 'FAILS'} |", flush=True)
    print(f"\n{len(chosen) - failed} of {len(chosen)} cells pass")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
