"""Whether a search loses or doubles a trial where its processes are killed, and what it finds on a task with a truth.

    uv run python benchmarks/killed_search.py        # 12 trials of 2 seeds: a quarter of an hour on two cores

Searches lambda on the toy task with a taste in it, by `rewards/accuracy`. The process that asks is killed (SIGKILL)
three times, each time together with the points that it has started, each time once some more have completed; the same
command is given again. At the end every trial must have been told once, its value be the mean of its seeds' numbers,
and no point be there twice. Prints the trials; exits with 1 where one of this does not hold.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

GOOD = (0.2, 1.0)  # of lambda: where the taste is learnt (docs/lambda_sweep.png)


def completed(sweep: Path) -> int:
    """How many points have."""
    return sum('"status": "completed"' in path.read_text() for path in sweep.glob("*/result.json"))


def kill(process: "subprocess.Popen[bytes]") -> int:
    """Kill it and all that it has started; how many processes these were."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for of in family:
        try:
            os.kill(of.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=60)
    return len(family)


def main() -> int:
    """0 where all is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=600, help="of each point")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        sweep = Path(work) / "sweeps/quickstart/killed"
        command = [sys.executable, "-m", "orpo_exp", "--multirun", "+experiment=quickstart", "data=toy_order",
                   "data.split_seed=0", "loss.lam=tag(log,interval(0.01,2))", "seed=0,1", f"sweep.trials={args.trials}",
                   f"train.max_steps={args.steps}", "train.samples=0", "tracker=[]", "sweep.name=killed"]  # fmt: skip
        points = 2 * args.trials
        for kills in range(3):
            process = subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL)
            while completed(sweep) < (kills + 1) * points // 4:
                assert process.poll() is None, "it has ended by itself"
                time.sleep(0.1)
            print(f"killed {kill(process)} processes after {completed(sweep)} points", flush=True)
        done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, text=True)
        records = [json.loads(line) for line in (sweep / "trials.jsonl").read_text().splitlines()]
        told = {of["trial_id"]: of["values"][0] for of in records if of["op_code"] == 6 and of["state"] == 1}
        often = Counter(of["trial_id"] for of in records if of["op_code"] == 6 and of["state"] == 1)
        found: dict[str, list[float]] = {}
        for point in json.loads((sweep / "sweep.json").read_text())["points"]:
            accuracy = json.loads((sweep / point["folder"] / "result.json").read_text())["eval"]["rewards/accuracy"]
            found.setdefault(point["overrides"]["loss.lam"], []).append(accuracy)
        print("\n| lambda | accuracy of each seed |\n|---|---|")
        for lam, values in found.items():
            print(f"| {lam} | {', '.join(f'{value:.4f}' for value in values)} |")
        print("\n" + done.stdout.split("\n\n")[-2])
        best = max(found, key=lambda lam: statistics.fmean(found[lam]))
        held = {
            "the last command ended well": done.returncode == 0,
            "every trial was told once": sorted(often.values()) == [1] * args.trials,
            "its value is the mean of its seeds": sorted(told.values())
            == sorted(map(statistics.fmean, found.values())),
            "no point is there twice": all(len(values) == 2 for values in found.values()) and len(found) == args.trials,
            f"the best lambda, {best}, lies in {GOOD}": GOOD[0] <= float(best) <= GOOD[1],
        }
        for what, holds in held.items():
            print(f"{'yes' if holds else 'NO '}  {what}")
        return int(not all(held.values()))


if __name__ == "__main__":
    sys.exit(main())
