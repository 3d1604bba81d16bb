"""What a step of DPO costs, in time and memory, where its reference comes from a cache: against a step of ORPO.

    uv run python benchmarks/cached_reference.py        # some three minutes on two cores

Runs of the quickstart on one thread, one kind after the other, several times over: the median step of each run, and of
those the median. ORPO's likelihood is over the answer alone, the faster of the two. Ends with exit code 1 where DPO
with a cache takes more than 1.1 times ORPO's time or memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST = 1.1
SHORT = ["+experiment=quickstart", "tracker=[]", "train.samples=0", "train.eval_every=0", "processes=1"]
KINDS = {
    "orpo": ["loss=orpo", "loss.nll=answer"],
    "dpo, cached": ["loss=dpo", "reference=cached"],
    "dpo, frozen": ["loss=dpo", "reference=frozen"],
}


def measured(kind: str, steps: int, folder: Path) -> tuple[float, int]:
    """Seconds of the median step, and peak memory in bytes, of one run."""
    command = [sys.executable, "-m", "orpo_exp", *SHORT, *KINDS[kind], f"train.max_steps={steps}"]
    command += [f"hydra.run.dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind}: {done.stdout}{done.stderr}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["pairs_per_second"] for line in lines if line["split"] == "train"]
    result = json.loads((folder / "result.json").read_text())
    return 1 / statistics.median(rates), result["peak_memory_bytes"]


def main() -> int:
    """Measure, print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, int]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="cached_reference_") as folder:
        for turn in range(arguments.rounds):
            for i, kind in enumerate(KINDS):
                found[kind].append(measured(kind, arguments.steps, Path(folder) / f"{turn}-{i}"))

    medians = {kind: [statistics.median(column) for column in zip(*runs, strict=True)] for kind, runs in found.items()}
    least = medians["orpo"]
    ratios = {kind: [value / base for value, base in zip(row, least, strict=True)] for kind, row in medians.items()}
    print("| | pairs per second | step time | peak memory, MB | memory |\n|---|---|---|---|---|")
    for kind, (seconds, peak) in medians.items():
        time, memory = ratios[kind]
        print(f"| {kind} | {1 / seconds:.0f} | {time:.3f} | {peak / 1e6:.0f} | {memory:.3f} |")
    return int(max(ratios["dpo, cached"]) > MOST)


if __name__ == "__main__":
    sys.exit(main())
