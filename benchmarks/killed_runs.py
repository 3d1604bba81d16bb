"""Kill runs with SIGKILL at random moments, some of them inside a save, resume them, and compare every number.

    uv run python benchmarks/killed_runs.py --runs 25
    uv run python benchmarks/killed_runs.py --runs 25 --plugin hybrid plugin.tp_size=2 plugin.precision=bf16_weights

Two ranks, an adaptive lambda, an epoch that ends every third step, a checkpoint every few. Prints a line for each run:
where it was killed, where it went on, how many steps were computed again, and whether its metrics are equal bit for bit
to those of a run that was left alone. Ends with exit code 1 where any is not.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support import kill_tree, numbers, start_run, uneven_rows, wait_for_end

STEPS, SAVE_EVERY = 60, 7
RUN = [
    "+experiment=orpo", "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=2", "tracker=[tensorboard]",
    "train.epochs=20", f"train.max_steps={STEPS}", "train.global_batch_size=8", "train.micro_batch_size=4",
    "train.eval_every=10", f"train.save_every={SAVE_EVERY}", "train.samples=0", "optimizer.lr=1e-3",
    "lam_schedule=balanced",
]  # fmt: skip


def last_step(folder: Path) -> int:
    """The last training step in metrics.jsonl."""
    metrics = folder / "metrics.jsonl"
    steps = re.findall(r'"step": (\d+), "split": "train"', metrics.read_text() if metrics.exists() else "")
    return int(steps[-1]) if steps else 0


def kill(process: subprocess.Popen[str], folder: Path, rng: random.Random) -> str:
    """Kill a run at a random step and a random moment in it, or in the middle of a random save; where it was."""
    in_a_save = rng.random() < 0.4
    step = rng.randrange(SAVE_EVERY if in_a_save else 1, STEPS - SAVE_EVERY)
    while last_step(folder) < step:
        if process.poll() is not None:
            raise RuntimeError(process.communicate()[0])
        time.sleep(0.01)  # the run has the cores
    if in_a_save:
        while not any((folder / "checkpoints").glob(".step-*.partial")):
            if process.poll() is not None:
                raise RuntimeError(process.communicate()[0])
    time.sleep(rng.random() * 0.02)
    kill_tree(process)
    half = any((folder / "checkpoints").glob(".step-*"))
    return f"step {last_step(folder)}" + (", inside a save" if half else "")


def main() -> int:
    """Run the trials; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=25, help="how many runs are killed")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--ranks", type=int, default=2, help="processes of each run")
    parser.add_argument("--plugin", nargs="+", default=["ddp"], metavar="NAME", help="and overrides of its settings")
    args = parser.parse_args()
    run = [*RUN, f"processes={args.ranks}", f"plugin={args.plugin[0]}", *args.plugin[1:]]
    rng = random.Random(args.seed)
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(24)))
        wait_for_end(start_run(place, *run, f"hydra.run.dir={place / 'whole'}"))
        expected = numbers(place / "whole")
        for trial in range(args.runs):
            folder = place / str(trial)
            arguments = [*run, f"hydra.run.dir={folder}"]
            where = kill(start_run(place, *arguments), folder, rng)
            reached = last_step(folder)
            wait_for_end(start_run(place, *arguments))
            resumed = re.findall(r"resumed at step (\d+)", (folder / "run.log").read_text())
            again = reached - int(resumed[-1]) if resumed else reached
            equal = numbers(folder) == expected
            wrong += not equal or again > SAVE_EVERY
            went_on = f"step {resumed[-1]}" if resumed else "the beginning"
            print(
                f"{trial + 1:3}: killed at {where}; went on at {went_on}, {again} steps computed again, "
                f"metrics {'equal' if equal else 'DIFFERENT'}",
                flush=True,
            )
    print(f"{args.runs - wrong} of {args.runs} are bit-equal, with at most {SAVE_EVERY} steps computed again")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
