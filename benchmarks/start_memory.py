"""How much of the host's memory a large model takes to start, over that of a tiny one, with plugins that split it.

    uv run python benchmarks/start_memory.py            # a minute for each plugin on two cores; 3 GB of memory

Four ranks on CPUs, where what a rank holds lies in the host's memory as well: with ddp the weights and, which it lays
out before the first step, the gradients, with zero2 the weights and a quarter of their float32 copies. The peak of each
rank up to the first step as Linux counts it (VmHWM), some tens of MB that malloc keeps included. Prints a table.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from host_memory import growths, make_model, orders, start

from orpo_exp.plugins import start_ranks

RANKS = 4
SPLITS = {
    "ddp": ["plugin=ddp"],
    "zero2": ["plugin=zero2"],
    "hybrid, tp 2 x pp 2": ["plugin=hybrid", "plugin.tp_size=2", "plugin.pp_size=2"],
}


def main() -> None:
    """Make the models, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=1024, help="the model's width")
    parser.add_argument("--layers", type=int, default=8, help="its layers")
    parser.add_argument("--only", choices=list(SPLITS), help="measure one plugin")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="start_memory_") as name:
        os.chdir(name)
        folder = Path(name)
        make_model(folder / "tiny", 64, 4)
        weights = make_model(folder / "model", args.hidden, args.layers)
        print(f"weights: {weights / 1e6:.0f} MB\n")
        print("| | MB by rank | sum | times the weights |\n|---|---|---|---|", flush=True)
        for title in [args.only] if args.only else SPLITS:
            starts = orders(folder, folder / "tiny", folder / "model", SPLITS[title])
            assert start_ranks(RANKS, start, starts, folder) == 0
            grown = growths(RANKS, folder)
            by_rank = ", ".join(f"{size / 1e6:.0f}" for size in grown)
            print(f"| {title} | {by_rank} | {sum(grown) / 1e6:.0f} | {sum(grown) / weights:.2f} |", flush=True)


if __name__ == "__main__":
    main()
