"""Train the quickstart with every loss, and print what each reaches on held-out pairs.

    uv run python benchmarks/losses_learn.py                       # all of them: half an hour on two cores
    uv run python benchmarks/losses_learn.py --losses dpo,kto --folder learned

Every loss runs with its own file's settings, at most optimizer.lr and loss.beta changed; CHANGED says where and why.
Runs that --folder holds already are not run again. Ends with exit code 1 where a loss that is to separate pairs stays
below 0.9.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENOUGH = 0.9
RUN = [sys.executable, "-m", "orpo_exp", "+experiment=quickstart", "tracker=[]", "train.samples=0"]
# not meant to separate each pair: one imitates, the other sets the distribution of all chosen answers against that of
# all rejected ones, whichever belong together
NOT_BY_PAIRS = {"sft", "aot_unpaired"}

# Settings that differ from the loss's own file, and what it reaches with the file's. Those are meant for fine-tuning;
# here the policy starts from random weights, and its log-ratios soon reach tens of nats.
CHANGED: dict[str, list[str]] = {
    # a larger beta keeps to the pairs that are not told apart yet
    "ipo": ["loss.beta=0.5"],  # 0.90
    "exo_pair": ["loss.beta=0.5"],  # 0.89
    "discopop": ["loss.beta=0.5"],  # 0.87
    "dpo_norm": ["loss.beta=1"],  # 0.81
    # with larger steps the answers drift far from the reference before they are told apart
    "dpo_hinge": ["optimizer.lr=1.5e-3"],  # 0.89
    "dpo_robust": ["loss.beta=0.5", "optimizer.lr=1.5e-3"],  # 0.88
    "apo_down": ["loss.beta=0.5", "optimizer.lr=1.5e-3"],  # 0.76
    "aot": ["loss.beta=0.5", "optimizer.lr=1.5e-3"],  # 0.91, and 0.83 with another seed
    # answers are judged one by one: a small beta also keeps both off the flat ends of the sigmoid
    "kto": ["loss.beta=0.02", "optimizer.lr=7e-4"],  # 0.78
    "apo_zero": ["loss.beta=0.05", "optimizer.lr=7e-4"],  # 0.71
    "aot_unpaired": ["loss.beta=0.003", "optimizer.lr=7e-4"],  # 0.67
}


def settings(loss: str) -> list[str]:
    """The overrides that make the quickstart learn with this loss."""
    return [f"loss={loss}", *CHANGED.get(loss, [])]


def accuracy(loss: str, steps: int, seed: int, folder: Path) -> float:
    """Held-out accuracy of a run, trained unless it has been; RuntimeError with the run's output where it fails."""
    changed = [*settings(loss), f"train.max_steps={steps}", f"seed={seed}"]
    run = folder / re.sub(r"[^\w.]+", "-", "-".join(changed))
    if not completed(run):
        done = subprocess.run(
            [*RUN, *changed, f"hydra.run.dir={run}"],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, capture_output=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{loss}: {done.stdout}{done.stderr}")
    result = json.loads((run / "result.json").read_text())
    print(f"{loss}: {result['eval']['rewards/accuracy']:.3f}", file=sys.stderr, flush=True)
    return float(result["eval"]["rewards/accuracy"])


def completed(run: Path) -> bool:
    """Whether this folder holds a run that reached its end."""
    result = run / "result.json"
    return result.exists() and json.loads(result.read_text())["status"] == "completed"


def main() -> int:
    """Run them and print the table; the exit code."""
    every = sorted(file.stem for file in (ROOT / "conf" / "loss").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", type=lambda text: text.split(","), default=every, help="e.g. dpo,kto; else all")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="draws weights and data")
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--folder", type=Path, default=None, help="where the runs lie; else a temporary one")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="losses_learn_"))).resolve()

    with ThreadPoolExecutor(arguments.at_once) as pool:
        reached = list(pool.map(lambda loss: accuracy(loss, arguments.steps, arguments.seed, folder), arguments.losses))
    print("| loss | changed | held-out accuracy |\n|---|---|---|")
    for loss, value in zip(arguments.losses, reached, strict=True):
        print(f"| `{loss}` | {' '.join(f'`{text}`' for text in settings(loss)[1:])} | {value:.3f} |")
    below = [loss for loss, value in zip(arguments.losses, reached, strict=True) if value < ENOUGH]
    return int(not NOT_BY_PAIRS.issuperset(below))


if __name__ == "__main__":
    sys.exit(main())
