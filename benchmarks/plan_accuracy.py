"""What a plan says of a run's memory and time, beside what the run then takes: models of three sizes, two vocabularies.

    uv run python benchmarks/plan_accuracy.py              # some minutes; needs 3 GB
    uv run python benchmarks/plan_accuracy.py --steps 100 --sizes 256x4

Each plan is the command line with plan_only=true, in a process of its own, and right after it the same command is run
without that. Memory is the sum of the plan's parts ("together") against `peak_memory_bytes` of result.json; beside it
stands what the plan saw in the steps that it timed. Time is "in all" against `wall_time_seconds`: from the reading of
data to the end, with evaluations, checkpoints, samples and plots, without the start of Python and its libraries. Ends
with exit code 1 where a memory is off by more than 25%, or a time by more than 30%. Another program on the machine
spoils the times.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = ("128x4", "256x6", "512x8")  # hidden width x layers
VOCABULARIES = (512, 32_000)
MEMORY, TIME = 0.25, 0.30
UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "s": 1, "min": 60, "h": 3600}
WORDS = [f"word{i}" for i in range(400)]


def write_pairs(path: Path, count: int) -> None:
    """Pairs of uneven lengths."""
    rng = random.Random(0)

    def text(mean: int) -> str:
        return " ".join(rng.choices(WORDS, k=max(1, round(mean * rng.lognormvariate(-0.1, 0.5)))))

    rows = [{"prompt": f"{text(12)} ", "chosen": text(10), "rejected": text(14)} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(size: str, vocabulary: int, steps: int) -> list[str]:
    """The run's overrides."""
    width, layers = size.split("x")
    return [
        "+experiment=orpo", "model=scratch", "data=json", "data.path=pairs.jsonl", "data.eval_size=16",
        "model.tokenizer=bytes", f"model.vocab_size={vocabulary}", f"model.hidden_size={width}",
        f"model.num_hidden_layers={layers}", "train.global_batch_size=8", f"train.max_steps={steps}",
        f"train.eval_every={steps // 2}", f"train.save_every={steps // 2}", "train.samples=1", "tracker=[]",
    ]  # fmt: skip


def given(arguments: list[str], folder: Path) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "orpo_exp", *arguments], cwd=folder, text=True, capture_output=True, env=os.environ
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def number(page: str, name: str) -> float:
    """What a plan's line says, in bytes or seconds."""
    found = re.search(rf"^ *{name} +(.+?) *$", page, re.MULTILINE)
    if found is None:
        sys.exit(f"the plan has no line {name!r}:\n{page}")
    parts = found[1].split()
    return sum(float(value) * UNITS[unit] for value, unit in zip(parts[::2], parts[1::2], strict=True))


def main() -> None:
    """Plan and run each; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--vocabularies", nargs="+", type=int, default=VOCABULARIES)
    parser.add_argument("--steps", type=int, default=12)
    asked = parser.parse_args()
    off = False
    print("| width x layers, vocabulary | parameters | memory: plan | seen | run | off | time: plan | run | off |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pairs(folder / "pairs.jsonl", 400)
        for size in asked.sizes:
            for vocabulary in asked.vocabularies:
                overrides = command(size, vocabulary, asked.steps)
                page = given([*overrides, "plan_only=true"], folder)
                run = folder / f"{size}-{vocabulary}"
                given([*overrides, f"hydra.run.dir={run}"], folder)
                result = json.loads((run / "result.json").read_text())
                memory, seen, seconds = (number(page, of) for of in ("together", "seen in the steps timed", "in all"))
                took, peak = result["wall_time_seconds"], result["peak_memory_bytes"]
                wrong = memory / peak - 1, seconds / took - 1
                off |= abs(wrong[0]) > MEMORY or abs(wrong[1]) > TIME
                parameters = re.search(r"([\d,]+) parameters", page)
                print(
                    f"| {size}, {vocabulary:,} | {parameters[1] if parameters else '?'} | {memory / 1e6:,.0f} MB "
                    f"| {seen / 1e6:,.0f} MB | {peak / 1e6:,.0f} MB | {wrong[0]:+.0%} "
                    f"| {seconds:.1f} s | {took:.1f} s | {wrong[1]:+.0%} |",
                    flush=True,
                )
    sys.exit(off)


if __name__ == "__main__":
    main()
