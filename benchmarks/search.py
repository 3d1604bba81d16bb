"""Whether a search finds better settings than chance: made-up surfaces of which the best setting is known.

    uv run python benchmarks/search.py                  # 50 searches of 12 trials by each: some minutes
    uv run python benchmarks/search.py --trials 24

A surface is a held-out accuracy over lambda and the learning rate, both on a log scale: a hill on a plain of 0.5, its
top somewhere inside, beyond it a learning rate from which training fails; what is measured has the noise of a few
seeds. A search goes by the study that sweeps use, on disk, each trial told before the next one is asked for. Its regret
is how much lower the true accuracy of the setting that it measured as its best is than the top. Beside it stands random
search with as many trials on the same surfaces. Prints both medians; exits with 1 where the search's is not below the
other one's.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy

from orpo_exp.metrics import Direction
from orpo_exp.sweeps.space import Interval
from orpo_exp.sweeps.study import Study, Values

AXES = (Interval("loss.lam", 0.01, 2.0, whole=False, log=True), Interval("optimizer.lr", 1e-4, 1e-2, False, log=True))
PLAIN, HILL, WIDTH = 0.5, 0.45, (0.6, 0.5)  # accuracies; widths in powers of ten
DIVERGES = 1.0  # powers of ten beyond the best learning rate
NOISE = 0.015


def surface(rng: numpy.random.Generator) -> Callable[[Values], float]:
    """The true accuracy of a setting; nan where training fails."""
    top = numpy.array([rng.uniform(-1.7, 0.0), rng.uniform(-3.8, -2.4)])

    def truth(values: Values) -> float:
        away = (numpy.log10([float(of) for of in values]) - top) / WIDTH
        if math.log10(float(values[1])) > top[1] + DIVERGES:
            return math.nan
        return PLAIN + HILL * math.exp(-float((away**2).sum()) / 2)

    return truth


def regret(chosen: Callable[[int, dict[Values, float]], Values], trials: int, seed: int) -> float:
    """Of one search. chosen: the values of a trial, given what the ones before came to."""
    rng = numpy.random.default_rng(seed)
    truth = surface(rng)
    measured: dict[Values, float] = {}
    for number in range(trials):
        values = chosen(number, measured)
        measured[values] = truth(values) + NOISE * rng.standard_normal()
    ended = {values: of for values, of in measured.items() if not math.isnan(of)}
    return PLAIN + HILL - truth(max(ended, key=lambda values: ended[values]))


def by_study(folder: Path) -> Callable[[int, dict[Values, float]], Values]:
    """A search as sweeps do it."""
    study = Study(folder, AXES, "rewards/accuracy", Direction.max)
    return lambda number, measured: study.trial(number, measured.get)


def at_random(seed: int) -> Callable[[int, dict[Values, float]], Values]:
    """Random search."""
    rng = numpy.random.default_rng(1_000_000 + seed)
    return lambda number, measured: tuple(axis.text(axis.at(float(rng.random()))) for axis in AXES)


def main() -> int:
    """0 where the search's median regret is below random search's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=50)
    parser.add_argument("--trials", type=int, default=12)
    args = parser.parse_args()
    found: dict[str, list[float]] = {"search": [], "random": []}
    began = time.monotonic()
    for seed in range(args.searches):
        with tempfile.TemporaryDirectory() as folder:
            found["search"].append(regret(by_study(Path(folder)), args.trials, seed))
        found["random"].append(regret(at_random(seed), args.trials, seed))
    took = time.monotonic() - began
    print(f"{args.searches} searches of {args.trials} trials, {took:.0f} s; the top is at {PLAIN + HILL}\n")
    print("| | median regret | mean | largest |\n|---|---|---|---|")
    for name, regrets in found.items():
        print(f"| {name} | {statistics.median(regrets):.4f} | {statistics.fmean(regrets):.4f} | {max(regrets):.4f} |")
    wins = sum(ours < theirs for ours, theirs in zip(*found.values(), strict=True))
    print(f"\nthe search is ahead in {wins} of {args.searches}")
    return int(statistics.median(found["search"]) >= statistics.median(found["random"]))


if __name__ == "__main__":
    sys.exit(main())
