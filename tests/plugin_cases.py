"""One fixed run in several cases, and the ways to split it: what the plugins' curves are compared on.

Uneven lengths, a global batch of 8 pairs, a last one of 5, clipping off but for one case, evaluations on the way.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from support import RATES, order_of, uneven_rows

from orpo_exp.runs.order import RunOrder

BASE = (
    "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=3", "train.global_batch_size=8",
    "train.samples=1", "train.sample_tokens=5", "train.max_grad_norm=null", "train.eval_every=2", "tracker=[]",
    "scheduler=constant", "reference=frozen", "optimizer.lr=1e-3", "train.max_steps=4",
)  # fmt: skip
CASES = {
    "orpo": ["loss=orpo", "train.max_steps=20", "train.save_every=8"],
    "orpo, not accumulated": ["loss=orpo", "train.micro_batch_size=8"],
    "sgd": ["loss=orpo", "optimizer=sgd", "optimizer.lr=1e-2"],
    "batch scope": ["loss=orpo_colossalchat"],
    "batch scope, not accumulated": ["loss=orpo_colossalchat", "train.micro_batch_size=8"],
    "clipped": ["loss=orpo", "train.max_grad_norm=0.01"],
    "dpo": ["loss=dpo", "loss.wpo=true"],
    "dpo, cached": ["loss=dpo", "reference=cached"],
    "kto, synced": ["loss=kto", "reference=synced", "reference.every=2", "reference.mix=0.5", "train.save_every=3"],
}
PLUGINS = {  # ranks, overrides, the precision with half the bits
    "zero1": (2, ["plugin=zero1"], "bf16"),
    "zero2": (2, ["plugin=zero2"], "bf16_weights"),
    "zero2_offload": (2, ["plugin=zero2_offload"], "bf16_weights"),
    "tp2": (2, ["plugin=hybrid", "plugin.tp_size=2"], "bf16_weights"),
    "pp2": (2, ["plugin=hybrid", "plugin.pp_size=2"], "bf16_weights"),
    "sp2": (2, ["plugin=hybrid", "plugin.sp_size=2", "model.attention=eager"], "bf16_weights"),
    "tp2 x pp2": (4, ["plugin=hybrid", "plugin.tp_size=2", "plugin.pp_size=2"], "bf16_weights"),
    "dp2 x pp2": (4, ["plugin=hybrid", "plugin.pp_size=2"], "bf16_weights"),
}
ALONE = ["plugin=ddp", "layout=padded"]  # what they are compared with; theirs is the default, several texts a row
NOT_COMPARED = {"split", "step", *RATES}


def write_pairs(folder: Path) -> None:
    """The data of all cases, where their commands look for it."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(24)))


def orders(
    folder: Path, name: str, plugin: Sequence[str], cases: Mapping[str, Sequence[str]], precision: str
) -> list[RunOrder]:
    """The cases as orders, in micro-batches of 2 pairs where they say nothing else, in <name>/<precision>/<case>."""
    made = []
    for case, overrides in cases.items():
        cache = f"reference.folder={folder / 'cache' / name}"
        more = [*overrides, f"plugin.precision={precision}", *([cache] if "reference=cached" in overrides else [])]
        order = order_of(*BASE, "train.micro_batch_size=2", *plugin, *more)
        made.append(replace(order, folder=folder / name / precision / case))
    return made


def compared(a: Mapping[str, Any]) -> list[str]:
    """The metrics of a line that are the same on every plugin."""
    near = abs(a["rewards/margin"]) < 1e-5  # policy and reference are equal: rounding decides who is ahead
    return [metric for metric in a if metric not in NOT_COMPARED and not (near and metric == "rewards/accuracy")]
