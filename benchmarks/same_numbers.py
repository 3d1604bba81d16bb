"""Run fixed commands at an earlier commit and at this one, and compare every metric of every step bit for bit.

    uv run python benchmarks/same_numbers.py --before COMMIT

For changes that are to change no number. Both sides run in this environment, on this machine, each command in a folder
of its own; times and rates are left out. A metric that only this commit reports is named and changes nothing; one that
is gone, or differs in its last bit, ends the script with exit code 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support import killed_at, numbers, start_run, uneven_rows, wait_for_end

ROOT = Path(__file__).parents[1]
TOY = [
    "+experiment=quickstart", "model.hidden_size=32", "train.global_batch_size=16", "train.micro_batch_size=4",
    "train.max_steps=12", "train.eval_every=5", "train.save_every=4", "train.samples=1", "train.sample_tokens=4",
    "data.eval_pairs=48", "tracker=[]",
]  # fmt: skip
# 22 training pairs in batches of 8: each epoch ends with a batch of 6
FILE = [
    "+experiment=orpo", "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=2", "train.epochs=4",
    "train.global_batch_size=8", "train.micro_batch_size=3", "train.eval_every=5", "train.save_every=4",
    "train.samples=0", "optimizer.lr=1e-3", "tracker=[]",
]  # fmt: skip
COMMANDS = {
    "plain": TOY,
    "two processes": [*TOY, "processes=2"],
    "torchrun": [*TOY, "loss=simpo"],
    "batch-scope loss": [*TOY, "loss=orpo_colossalchat"],
    "cached reference": [*TOY, "loss=dpo", "reference=cached", "reference.folder=cache"],
    "synced reference": [*TOY, "loss=ipo", "reference=synced", "reference.every=3", "reference.mix=0.5", "processes=2"],
    "KTO": [*TOY, "loss=kto", "processes=2"],
    "adaptive lambda": [*TOY, "lam_schedule=balanced"],
    "short last batch": [*FILE, "loss=dpo", "loss.nll_weight=0.5", "loss.wpo=true", "processes=2"],
    "resumed": [*FILE, "lam_schedule=target_margin"],
    "sgd": [*TOY, "optimizer=sgd", "optimizer.momentum=0.9", "model.gradient_checkpointing=true", "loss=cpo"],
}
TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29513", "-m"]


def run(name: str, arguments: list[str], code: Path, place: Path) -> list[dict[str, object]]:
    """The numbers of one command, carried out by the code in a checkout."""
    place.mkdir(parents=True)
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(24)))
    command, folder = [*arguments, f"hydra.run.dir={place / 'run'}"], place / "run"
    environment = {"PYTHONPATH": str(code)}
    if name == "resumed":
        killed_at(7, start_run(place, *command, environment=environment), folder)
    wait_for_end(start_run(place, *command, launcher=TORCHRUN if name == "torchrun" else (), environment=environment))
    return numbers(folder)


def main() -> int:
    """Run and compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", required=True, help="the commit to compare with")
    parser.add_argument("--only", choices=list(COMMANDS), help="one of the commands alone")
    given = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        place, before = Path(name), Path(name) / "code"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", before, given.before], cwd=ROOT, check=True)
        try:
            for title, arguments in COMMANDS.items():
                if given.only in (None, title):
                    slug = title.replace(" ", "_")
                    old = run(title, arguments, before, place / "before" / slug)
                    new = run(title, arguments, ROOT, place / "after" / slug)
                    wrong += not compared(title, old, new)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    print("every number is the same" if not wrong else f"{wrong} commands differ")
    return 1 if wrong else 0


def compared(title: str, old: list[dict[str, object]], new: list[dict[str, object]]) -> bool:
    """Whether what the earlier code reported is reported still, bit for bit; prints a line."""
    added = sorted({key for record in new for key in record} - {key for record in old for key in record})
    shared = [{key: value for key, value in record.items() if key not in added} for record in new]
    said = f", and {', '.join(added)} is new" if added else ""
    if shared == old:
        print(f"{title:18} {len(old)} records, {sum(map(len, old))} numbers: equal{said}", flush=True)
        return True
    first = next((o for o, n in zip(old, shared, strict=False) if o != n), None)
    print(f"{title:18} DIFFERENT, {len(old)} records against {len(new)}; the first: {first}", flush=True)
    return False


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
