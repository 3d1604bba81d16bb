"""Whether races set aside the right settings: made-up sweeps of which the truth is known at every rung.

    uv run python benchmarks/racing.py                           # 10,000 races a cell: some minutes on one core
    uv run python benchmarks/racing.py --races 1000 --cells own

Sweeps are made up as in `intervals.py`, with a skill of each setting at each rung and at the end. What a pair, a
setting and a seed do stays the same from rung to rung, as in one training; what a seed does to a setting does so by
half, and chance is drawn anew. At every rung the settings still in the race are compared by the functions that a race
uses.

The best at a rung is the setting with the highest true accuracy there, over new seeds and new pairs; of several that
are level, the first. A cell passes where it is set aside in at most 5% of races, all rungs together, and, where one
setting is clearly ahead, at least 40% of the steps are saved on average. It fails where the numbers of this simulation
exclude that, one-sided, at 99.9%. Of curves that cross after the first rung it is told how often the one that is the
best at the end was set aside: no race promises anything about that. Prints a table; exits with 1 where a cell fails.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import intervals as sweeps
import numpy
from scipy.stats import binom, norm

from orpo_exp.sweeps.racing import WRONG, lower_end

SAVED, SURE = 0.40, 0.001
RUNGS = (0.25, 0.5)
AT_ONCE = 4_000_000  # outcomes that are drawn at a time


@dataclass(frozen=True)
class Cell:
    """sweep: as in intervals.py; its effect is not looked at. ahead: by how much the first setting's skill is above
    that of the others at each rung and at the end. kind: level, ahead, clear or crossing."""

    sweep: sweeps.Cell
    ahead: tuple[float, float, float]
    kind: str

    @property
    def name(self) -> str:
        """All that it consists of."""
        return f"{self.kind} {self.ahead}: {self.sweep.name}"


def cells() -> list[Cell]:
    """What is tried."""
    level, some, clear = (0.0,) * 3, (0.1, 0.2, 0.2), (0.8, 1.2, 1.2)
    usual = [
        sweeps.Cell(s, k, 256, sets, spread)
        for s in (2, 6)
        for k in (2, 3, 5)
        for sets in ("common", "own")
        for spread in (0.0, 0.3)
    ]
    unequal = [sweeps.Cell(s, k, 256, "common", 0.1, unequal=u) for s in (2, 3, 6) for k in (3, 5) for u in (0.25, 4)]
    few = [sweeps.Cell(s, 3, 64, "common", 0.0, apart=0.02) for s in (2, 6)]
    many = [sweeps.Cell(20, 3, 256, "common", spread) for spread in (0.1, 0.3)]
    found = [Cell(of, level, "level") for of in [*usual, *unequal, *few, *many]]
    found += [Cell(of, some, "ahead") for of in [*usual[8:], *unequal, *many]]
    ahead = [sweeps.Cell(s, k, 256, sets, 0.1) for s in (6, 20) for k in (3, 5) for sets in ("common", "own")]
    found += [Cell(of, clear, "clear") for of in ahead]
    crossing = [sweeps.Cell(6, k, 256, "common", 0.1) for k in (3, 5)]
    found += [Cell(of, (-0.3, 0.0, 0.3), "crossing") for of in crossing]
    found += [Cell(of, (-1.0, -0.3, 0.5), "crossing") for of in crossing]
    return found


def drawn(cell: Cell, races: int, rng: numpy.random.Generator) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Outcomes (rungs and end, races, S, K, n), which pairs they are of (races, K, n), true accuracies (rungs and
    end, S)."""
    of = cell.sweep
    s, k, n = of.settings, of.seeds, of.pairs
    spread = numpy.full(s, of.spread)
    spread[0] *= of.unequal
    over_pairs = sweeps.PAIR**2 + of.apart**2 + sweeps.CHANCE**2
    deviation = numpy.sqrt(over_pairs + sweeps.LUCK**2 + spread**2)
    ahead = numpy.array([[lead, *[0.0] * (s - 1)] for lead in cell.ahead])
    own = of.sets == "own"
    which = numpy.broadcast_to(numpy.arange(n * k).reshape(k, n) if own else numpy.arange(n), (races, k, n))
    prompts = n * k if own else n
    pair = sweeps.PAIR * rng.standard_normal((races, 1, prompts)) + of.apart * rng.standard_normal((races, s, prompts))
    of_pair = numpy.take_along_axis(pair[:, :, None, :], which[:, None], axis=-1)
    luck = sweeps.LUCK * rng.standard_normal((races, 1, k))
    lasting = rng.standard_normal((races, s, k))
    outcomes = []
    for lead in ahead:
        seeds = luck + spread[:, None] * math.sqrt(0.5) * (lasting + rng.standard_normal((races, s, k)))
        skill = (0.4 + lead) * deviation
        latent = skill[:, None, None] + seeds[..., None] + of_pair
        latent = latent + sweeps.CHANCE * rng.standard_normal((races, s, k, n))
        outcomes.append((latent > 0).astype(float))
    return numpy.stack(outcomes), which, norm.cdf(0.4 + ahead)


def behind(
    of: sweeps.Cell, outcomes: numpy.ndarray, which: numpy.ndarray, rng: numpy.random.Generator
) -> numpy.ndarray:
    """Whether each setting is clearly behind the best of these, (races, S)."""
    count, settings = outcomes.shape[:2]
    if settings == 1:
        return numpy.zeros((count, 1), bool)
    found = sweeps.leads_of(of, outcomes, which, rng, lower_end(len(RUNGS)))
    clear: numpy.ndarray = (found.lead - found.below > 0) & found.rivals
    return clear


def raced(cell: Cell, races: int, rng: numpy.random.Generator) -> tuple[int, float, int]:
    """In how many of so many races the best at a rung was set aside, the share of the steps that was saved, and how
    often the best at the end was set aside."""
    wrong, saved, lost, done = 0, 0.0, 0, 0
    of = cell.sweep
    size = max(1, AT_ONCE // (of.settings * of.seeds * of.pairs))
    while done < races:
        count = min(size, races - done)
        outcomes, which, truth = drawn(cell, count, rng)
        racing = numpy.ones((count, of.settings), bool)
        mistaken = numpy.zeros(count, bool)
        for rung, share in enumerate(RUNGS):
            out = numpy.zeros_like(racing)
            for kinds in numpy.unique(racing, axis=0):  # races with the same settings in them
                these, there = numpy.flatnonzero((racing == kinds).all(-1)), numpy.flatnonzero(kinds)
                part = outcomes[rung][numpy.ix_(these, there)]
                out[numpy.ix_(these, there)] = behind(of, part, which[these], rng)
            mistaken |= out[:, truth[rung].argmax()]
            racing &= ~out
            saved += (1 - share) * out.mean(-1).sum()
        wrong += int(mistaken.sum())
        lost += int((~racing[:, truth[-1].argmax()]).sum())
        done += count
    return wrong, saved / races, lost


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every cell passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=10_000, help="made-up races for each cell")
    parser.add_argument("--cells", default="", help="only those whose name contains this")
    args = parser.parse_args(arguments)
    chosen = [cell for cell in cells() if args.cells in cell.name]
    print(f"{len(chosen)} cells, {args.races:,} races each, rungs {RUNGS}\n")
    print("| skill ahead at the rungs and the end: sweep | best at a rung set aside, % | steps saved, % | |")
    print("|---|---|---|---|", flush=True)
    failed = 0
    for number, cell in enumerate(chosen):
        wrong, saved, lost = raced(cell, args.races, numpy.random.default_rng(number))
        right = binom.cdf(wrong - 1, args.races, WRONG) <= 1 - SURE
        enough = cell.kind != "clear" or saved >= SAVED
        failed += not (right and enough)
        said = "" if right and enough else "FAILS"
        if cell.kind == "crossing":
            said += f"the best at the end was set aside in {100 * lost / args.races:.1f}%"
        print(f"| {cell.name} | {100 * wrong / args.races:.1f} | {100 * saved:.0f} | {said} |", flush=True)
    print(f"\n{len(chosen) - failed} of {len(chosen)} cells pass")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
