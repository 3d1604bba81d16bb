"""LoRA on several ranks: curve and adapter of one process, whatever layout and plugin, gone on with bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapters.small import save_llama
from plugin_cases import compared, write_pairs
from safetensors.torch import load_file
from support import numbers, order_of, run_all

from orpo_exp.plugins import start_ranks
from orpo_exp.tracking.jsonl import read_metrics

pytestmark = pytest.mark.parallel

RUN = (
    "model=hf", "model.path=base", "data=json", "data.path=pairs.jsonl", "data.eval_size=3", "tracker=[]",
    "train.global_batch_size=8", "train.max_grad_norm=null", "train.samples=1", "train.sample_tokens=5",
    "scheduler=constant", "optimizer.lr=1e-2", "adapter=lora", "train.max_steps=20", "train.eval_every=10",
)  # fmt: skip
LOSSES = {
    "orpo": ["loss=orpo", "train.save_every=8"],
    "dpo": ["loss=dpo"],
    "nf4": ["loss=orpo", "model.quantization=nf4", "train.save_every=8"],
    "int8": ["loss=dpo", "reference=frozen", "model.quantization=int8"],
}
WAYS = {  # overrides, losses
    "zero1": (["plugin=zero1"], ["orpo"]),
    "zero2": (["plugin=zero2"], ["orpo", "dpo", "nf4", "int8"]),
    "ddp x2": (["plugin=ddp"], ["orpo", "dpo"]),
    "ddp x2 in micro-batches of 1": (["plugin=ddp", "layout=shared_prefix", "train.micro_batch_size=1"], ["orpo"]),
    "pp2": (["plugin=hybrid", "plugin.pp_size=2", "train.micro_batch_size=2"], ["orpo", "dpo", "nf4"]),
    "dp2": (["plugin=hybrid"], ["orpo"]),
    "sp2": (["plugin=hybrid", "plugin.sp_size=2", "model.attention=eager"], ["orpo"]),
}
STARTS = {"whole models": ["zero1", "zero2", "ddp x2", "ddp x2 in micro-batches of 1"], "hybrid": ["pp2", "dp2", "sp2"]}


def orders(folder: Path, name: str, overrides: list[str], losses: list[str]) -> list:
    return [
        replace(order_of(*RUN, *overrides, *LOSSES[loss]), folder=folder / name / loss) for loss in losses
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all runs lie; those of one process, padded, are there."""
    folder = tmp_path_factory.mktemp("adapters")
    write_pairs(folder)
    save_llama(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        alone = ["plugin=ddp", "layout=padded", "train.micro_batch_size=4"]
        assert start_ranks(1, run_all, orders(folder, "alone", alone, list(LOSSES))) == 0
    return folder


@pytest.mark.parametrize("names", STARTS.values(), ids=STARTS)
def test_the_curve_is_that_of_one_process(folder, names, monkeypatch):
    """On two ranks, which are started once for several ways."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = [orders(folder, name, *WAYS[name]) for name in names]
    assert start_ranks(2, run_all, [order for of in given for order in of], [(of[0], 8) for of in given]) == 0
    for of in given:
        check(folder, of)


def check(folder: Path, given: list) -> None:
    """What became of the runs of one way, the first of which was cut back."""
    whole = given[0].folder.with_name(f"{given[0].folder.name} whole")
    assert "resumed at step 8" in (given[0].folder / "run.log").read_text()
    assert numbers(given[0].folder) == numbers(whole)
    written = "model/adapter_model.safetensors"
    assert (given[0].folder / written).read_bytes() == (whole / written).read_bytes()
    for order in given:
        theirs = load_file(folder / "alone" / order.folder.name / written)
        for key, of in load_file(order.folder / written).items():
            torch.testing.assert_close(of, theirs[key], rtol=1e-3, atol=1e-5)
        theirs, ours = (
            read_metrics(of / "metrics.jsonl") for of in (folder / "alone" / order.folder.name, order.folder)
        )
        for a, b in zip(theirs, ours, strict=True):
            for metric in compared(a):
                # rewards are differences of float32 log-probabilities: near 0 they have no relative precision
                close = 2e-6 if metric.startswith(("rewards/", "log_odds")) else 0
                assert b[metric] == pytest.approx(a[metric], rel=1e-4, abs=close), (metric, a["split"], a["step"])
