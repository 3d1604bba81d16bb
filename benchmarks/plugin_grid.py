"""Every case of tests/parallel/test_plugins.py, split in every way, in every precision, beside ddp on one process.

    uv run python benchmarks/plugin_grid.py [--only zero1 --only "tp2 x pp2"]

Each case in micro-batches of 2 pairs and not accumulated: in float32 as it is, where any metric of any step may differ
by 1e-4, relatively, and samples must be equal; with 16 bits for 20 steps, where losses may differ by 2e-2, and the norm
of the first step's gradient, from those of ddp by autocast. A row for each, and exit code 1 where one fails.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from plugin_cases import ALONE, CASES, PLUGINS, compared, orders, write_pairs
from support import run_all

from orpo_exp.plugins import Place, Precision, start_ranks
from orpo_exp.plugins.precision import LossScale
from orpo_exp.runs.order import RunOrder
from orpo_exp.schema import ConfigError
from orpo_exp.tracking.jsonl import read_metrics
from orpo_exp.tracking.logs import CONSOLE

SETTINGS: dict[str, tuple[int, list[str]]] = {
    "ddp x2": (2, ["plugin=ddp"]),
    **{name: (ranks, overrides) for name, (ranks, overrides, _) in PLUGINS.items()},
    "dp2 x pp2 with zero": (4, ["plugin=hybrid", "plugin.pp_size=2", "plugin.zero_stage=1"]),
}
GRID = CASES | {
    f"{case}, not accumulated": [*overrides, "train.micro_batch_size=8"]
    for case, overrides in CASES.items()
    if "not accumulated" not in case
}
PRECISIONS = [of for of in Precision if of is not Precision.tf32]  # which is of GPUs
AUTOCAST = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "bf16_weights": "bf16", "fp16_weights": "fp16"}
TITLES = ("plugin", "precision", "case", "metrics", "norm", "samples", "")


def quietly(place: Place, orders: list[RunOrder]) -> int:
    """support.run_all, with nothing on the screen, and a loss scale at which float16 does not overflow.

    Where the scale begins as it does else, some ways skip the first step and others do not: other curves, rightly.
    """
    begin = LossScale.__init__

    def lower(scale: LossScale, precision: Precision) -> None:
        begin(scale, precision)
        scale.scale = min(scale.scale, 2.0**8)

    LossScale.__init__ = lower
    CONSOLE.quiet = True
    return run_all(place, orders)


def planned(folder: Path, name: str, plugin: list[str], precision: Precision) -> tuple[list[RunOrder], dict[str, str]]:
    """The cases in this precision; those that are refused, with the setting that is to blame."""
    made, refused = [], {}
    longer = [] if precision is Precision.fp32 else ["train.max_steps=20"]
    for case, overrides in GRID.items():
        try:
            made += orders(folder, name, plugin, {case: [*overrides, *longer]}, precision.value)
        except ConfigError as error:
            refused[case] = error.key
    return made, refused


def apart(given: float, expected: float, close: float) -> float:
    """The relative difference of two numbers; 0 where they are as close as `close`."""
    difference = abs(given - expected)
    return 0.0 if difference <= close else difference / abs(expected) if expected else math.inf


def differences(ours: Path, theirs: Path, whole: bool) -> tuple[float, float]:
    """The largest difference of any metric and of the norm. whole: all of them in all steps, else those of 16 bits."""
    metrics, norms = [0.0], [0.0]
    for a, b in zip(read_metrics(theirs / "metrics.jsonl"), read_metrics(ours / "metrics.jsonl"), strict=True):
        if a.keys() != b.keys():  # one of them has skipped a step, say
            return math.inf, math.inf
        for metric in compared(a):
            # rewards are differences of float32 log-probabilities: near 0 they have no relative precision
            close = 2e-6 if metric.startswith(("rewards/", "log_odds")) else 0.0
            if metric == "grad_norm" and (whole or a["step"] == 1):
                norms.append(apart(b[metric], a[metric], close))
            elif metric != "grad_norm" and (whole or metric.endswith("loss")):
                metrics.append(apart(b[metric], a[metric], close))
    return max(metrics), max(norms)


def row(name: str, order: RunOrder, folder: Path) -> tuple[str, ...]:
    """What is printed of a case."""
    precision, case = order.config.plugin.precision.value, order.folder.name
    theirs, whole = folder / "ddp" / AUTOCAST[precision] / case, precision == "fp32"
    if not (order.folder / "samples.md").exists():
        result = order.folder / "result.json"
        error = json.loads(result.read_text())["error"] if result.exists() else None
        return name, precision, case, "", "", "", f"FAIL: {str(error or 'it did not end').strip().splitlines()[-1]}"
    metrics, norm = differences(order.folder, theirs, whole)
    same = (order.folder / "samples.md").read_text() == (theirs / "samples.md").read_text()
    passes = max(metrics, norm) <= (1e-4 if whole else 2e-2) and (same or not whole)
    samples = ("equal" if same else "DIFFERENT") if whole else "-"
    return name, precision, case, f"{metrics:.1e}", f"{norm:.1e}", samples, "PASS" if passes else "FAIL"


def show(cells: tuple[str, ...]) -> None:
    """Print a row of the table."""
    print(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, (16, 12, 28, 8, 8, 9, 4), strict=True)),
        flush=True,
    )


def main() -> int:
    """Run the grid; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(SETTINGS), help="one of the ways alone; repeatable")
    names = parser.parse_args().only or list(SETTINGS)
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.chdir(folder)
        write_pairs(folder)
        alone = [of for of in PRECISIONS if of.value in AUTOCAST.values()]
        start_ranks(1, quietly, [order for of in alone for order in planned(folder, "ddp", ALONE, of)[0]])
        show(TITLES)
        for name in names:
            ranks, plugin = SETTINGS[name]
            plans = {of: planned(folder, name, plugin, of) for of in PRECISIONS}
            start_ranks(ranks, quietly, [order for made, _ in plans.values() for order in made])
            for precision, (made, refused) in plans.items():
                rows = [row(name, order, folder) for order in made]
                for cells in rows:
                    show(cells)
                failed += sum(cells[-1] != "PASS" for cells in rows)
                if refused:
                    keys = ", ".join(sorted(set(refused.values())))
                    show((name, precision.value, f"{len(refused)} cases", "", "", "", f"refused: {keys}"))
    print("all pass" if not failed else f"{failed} fail")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
