"""What a step of DPO costs, in time and memory, where its reference comes from a cache: against a step of ORPO.

    uv run python benchmarks/cached_reference.py        # a minute or two on two cores

Three quickstarts run at once and take turns step by step, one thread each, so that the machine's moods meet all alike;
medians over the steps. ORPO's likelihood is over the answer alone, the faster of the two. Ends with exit code 1 where
DPO with a cache takes more than 1.1 times ORPO's time or memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST = 1.1
WARM_UP = 10  # first steps that do not count
QUICK = ["+experiment=quickstart", "tracker=[]", "train.samples=0", "train.eval_every=0", "processes=1"]
KINDS = {
    "orpo": ["loss=orpo", "loss.nll=answer"],
    "dpo, cached": ["loss=dpo", "reference=cached"],
    "dpo, frozen": ["loss=dpo", "reference=frozen"],
}
# a module from outside: each run waits for its turn, and hands it on after a step
IN_TURN = """
import json, os, time
from orpo_exp.training.loop import Loop

mine, following = (os.open(os.environ[name], os.O_RDWR) for name in ("MINE", "FOLLOWING"))
train_step, seconds = Loop.train_step, []


def in_turn(self):
    os.read(mine, 1)
    begun = time.perf_counter()
    metrics = train_step(self)
    seconds.append(time.perf_counter() - begun)
    if self.step == self.max_steps:
        with open(os.environ["SECONDS"], "w") as file:
            json.dump(seconds, file)
    os.write(following, b"-")
    return metrics


Loop.train_step = in_turn
"""


def measured(steps: int, folder: Path) -> dict[str, tuple[float, int]]:
    """Seconds of the median step, and peak memory in bytes, of each kind."""
    (folder / "outside").mkdir()
    (folder / "outside" / "in_turn.py").write_text(IN_TURN)
    places = [folder / kind.replace(", ", "-") for kind in KINDS]
    turns = [place.with_suffix(".turn") for place in places]
    for turn in turns:
        os.mkfifo(turn)
    first = os.open(turns[0], os.O_RDWR)
    os.write(first, b"-")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ORPO_EXP_PATH": str(folder / "outside")}
    runs = []
    for i, (place, settings) in enumerate(zip(places, KINDS.values(), strict=True)):
        own = {"MINE": turns[i], "FOLLOWING": turns[(i + 1) % len(turns)], "SECONDS": place.with_suffix(".seconds")}
        command = [*QUICK, *settings, f"train.max_steps={steps}", f"hydra.run.dir={place}"]
        if "reference=cached" in settings:
            command.append(f"reference.folder={folder}")
        variables = environment | {key: str(path) for key, path in own.items()}
        whole = [sys.executable, "-m", "orpo_exp", *command]
        runs.append(subprocess.Popen(whole, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL))
    try:
        # where one has failed, the others would wait for their turn for ever
        while any(run.poll() is None for run in runs) and not any(run.returncode for run in runs):
            time.sleep(0.2)
        if any(run.returncode for run in runs):
            raise RuntimeError("a run failed; what it said is above")
    finally:
        for run in runs:
            run.kill()
        os.close(first)
    found = {}
    for kind, place in zip(KINDS, places, strict=True):
        seconds = json.loads(place.with_suffix(".seconds").read_text())[WARM_UP:]
        memory = json.loads((place / "result.json").read_text())["peak_memory_bytes"]
        found[kind] = statistics.median(seconds), memory
    return found


def main() -> int:
    """Measure, print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory(prefix="cached_reference_") as folder:
        found = measured(steps, Path(folder))
    least_time, least_memory = found["orpo"]
    print("| | ms a step | to ORPO's | peak memory, MB | to ORPO's |\n|---|---|---|---|---|")
    for kind, (seconds, memory) in found.items():
        ratios = f"{seconds / least_time:.3f} | {memory / 1e6:.0f} | {memory / least_memory:.3f}"
        print(f"| {kind} | {1000 * seconds:.1f} | {ratios} |")
    seconds, memory = found["dpo, cached"]
    return int(max(seconds / least_time, memory / least_memory) > MOST)


if __name__ == "__main__":
    sys.exit(main())
