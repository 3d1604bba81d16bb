"""A run of eight steps with a checkpoint every second one, for the tests of stopping and going on."""

import json
from pathlib import Path

from orpo_exp.training.checkpoints import listed_checkpoints

# 22 training pairs in batches of 8: steps 3 and 6 end an epoch with a short batch
BASE = [
    "+experiment=orpo", "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=2", "tracker=[]",
    "train.epochs=3", "train.max_steps=8", "train.global_batch_size=8", "train.eval_every=4", "train.save_every=2",
    "train.samples=1", "train.sample_tokens=4", "optimizer.lr=1e-3",
]  # fmt: skip


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def steps_saved(folder: Path) -> list[int]:
    return [step for step, _ in listed_checkpoints(folder / "checkpoints")]
