"""Gemini on two ranks, on a CPU where its GPU is a label (gemini_on_cpu.py): `uv run pytest -m parallel`.

The fixed run of test_plugins.py: its losses are those of ddp under autocast on one process, to the precision of
bfloat16, and it goes on bit for bit.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gemini_on_cpu import emulate, run_all_emulated
from support import numbers, order_of, run_all, uneven_rows

from orpo_exp.plugins import Place, start_ranks
from orpo_exp.plugins.gemini import Gemini
from orpo_exp.plugins.ranks import left_afterwards
from orpo_exp.tracking.jsonl import read_metrics
from orpo_exp.types import Builder, BuiltModel

pytestmark = pytest.mark.parallel

BASE = (
    "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=3", "train.global_batch_size=8",
    "train.micro_batch_size=2", "train.samples=1", "train.sample_tokens=5", "train.max_grad_norm=null",
    "train.eval_every=2", "tracker=[]", "scheduler=constant", "reference=frozen", "optimizer.lr=1e-3",
    "train.max_steps=4",
)  # fmt: skip
CASES = {
    "orpo": ["loss=orpo", "train.max_steps=20", "train.save_every=4", "train.keep_last=5"],
    "not accumulated, offloaded": ["loss=orpo", "train.micro_batch_size=8"],
    "sgd": ["loss=orpo", "optimizer=sgd", "optimizer.lr=1e-2"],
    "batch scope": ["loss=orpo_colossalchat"],
    "clipped": ["loss=orpo", "train.max_grad_norm=0.01"],
    "dpo, cached": ["loss=dpo", "reference=cached"],
    "kto, synced": ["loss=kto", "reference=synced", "reference.every=2", "train.save_every=3"],
}
OFFLOADED = ["plugin.offload_optim_frac=1.0", "plugin.offload_param_frac=1.0"]
GO_ON = {"orpo": 8, "kto, synced": 3}  # cut back to this step, a second time


def orders(folder: Path, name: str, plugin: list[str]) -> list:
    made = []
    for case, overrides in CASES.items():
        cache = [f"reference.folder={folder / 'cache' / name}"] if "reference=cached" in overrides else []
        more = OFFLOADED if name == "gemini" and "offloaded" in case else []
        made.append(replace(order_of(*BASE, *plugin, *overrides, *cache, *more), folder=folder / name / case))
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Where all runs of this module lie: <plugin>/<case>."""
    folder = tmp_path_factory.mktemp("gemini")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(24)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        assert start_ranks(1, run_all, orders(folder, "ddp", ["plugin=ddp", "plugin.precision=bf16"])) == 0
        ours = orders(folder, "gemini", ["plugin=gemini"])
        again = [(order, GO_ON[order.folder.name]) for order in ours if order.folder.name in GO_ON]
        assert start_ranks(2, run_all_emulated, ours, again) == 0
    return folder


@pytest.mark.parametrize("case", CASES)
def test_the_losses_are_those_of_ddp_to_the_precision_of_bfloat16(runs, case):
    both = zip(*(read_metrics(runs / name / case / "metrics.jsonl") for name in ("ddp", "gemini")), strict=True)
    for expected, given in both:
        terms = [of for of in expected if of.endswith("loss")] + (["grad_norm"] if expected["step"] == 1 else [])
        for metric in terms:
            assert given[metric] == pytest.approx(expected[metric], rel=2e-2), (metric, expected["step"])


@pytest.mark.parametrize("case", GO_ON)
def test_it_goes_on_bit_for_bit(runs, case):
    folder = runs / "gemini" / case
    whole = folder.with_name(f"{case} whole")
    assert "resumed at step" in (folder / "run.log").read_text()
    assert numbers(folder) == numbers(whole)
    assert (folder / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()


def test_a_single_rank_reads_what_two_have_written(runs, monkeypatch):
    """The last checkpoint has the weights of the exported model."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = runs / "gemini" / "orpo"
    random = BuiltModel(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model")), lambda of: of)
    emulate(monkeypatch.setattr)
    with left_afterwards():
        plugin = Gemini(Gemini.Config(), Place())
        plugin.prepare(Builder(lambda: random, lambda: random), lambda of: torch.optim.AdamW(of, fused=True), None)
        plugin.load(folder / "checkpoints" / "step-00000020", held=False)
        expected = load_file(folder / "model" / "model.safetensors")
        assert {name: of.equal(expected.pop(name)) for name, of in plugin.policy.whole()} == dict.fromkeys(
            [name for name, _ in random.model.named_parameters()], True
        )
        assert not expected
