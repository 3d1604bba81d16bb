"""Every plugin that runs on CPUs: the curve of ddp on one process, resumed bit for bit. `uv run pytest -m parallel`.

One fixed run: uneven lengths, a global batch of 8 pairs, a last one of 5, clipping off, evaluations on the way. The
ranks of a plugin are started once. The whole grid: `benchmarks/plugin_grid.py`.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import numbers, order_of, run_all, uneven_rows

from orpo_exp.plugins import start_ranks
from orpo_exp.tracking.jsonl import read_metrics

pytestmark = pytest.mark.parallel

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
    "clipped": ["loss=orpo", "train.max_grad_norm=0.01"],
    "dpo": ["loss=dpo", "loss.wpo=true"],
    "dpo, cached": ["loss=dpo", "reference=cached"],
    "kto, synced": ["loss=kto", "reference=synced", "reference.every=2", "reference.mix=0.5", "train.save_every=3"],
}
HALF = {"orpo": ["loss=orpo", "train.max_steps=20", "train.save_every=8"], "dpo": ["loss=dpo"]}
GO_ON = {"orpo": 8, "kto, synced": 3}  # cut back to this step, a second time
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
FEWER = {  # of the cases, where others have tried them all
    "zero2": ["orpo", "sgd", "batch scope", "clipped", "kto, synced"],
    "zero2_offload": ["orpo", "clipped"],
    "tp2 x pp2": ["orpo", "sgd", "batch scope", "clipped"],
    "dp2 x pp2": ["orpo", "batch scope", "clipped"],
}
RATES = {"split", "step", "time", "pairs_per_second", "tokens_per_second"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Where all runs of this module lie: <plugin>/<case>; those of ddp on one process are there."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(24)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        start(1, orders(folder, "ddp", ["plugin=ddp"], CASES, "fp32") + orders(folder, "ddp", [], HALF, "bf16"))
    return folder


def orders(folder, name, plugin, cases, precision):
    """The cases as orders, in micro-batches of 2 pairs where they say nothing else."""
    made = []
    for case, overrides in cases.items():
        cache = f"reference.folder={folder / 'cache' / name}"
        more = [*overrides, f"plugin.precision={precision}", *([cache] if "reference=cached" in overrides else [])]
        order = order_of(*BASE, "train.micro_batch_size=2", *plugin, *more)
        made.append(replace(order, folder=folder / name / precision / case))
    return made


def start(ranks, *arguments):
    assert start_ranks(ranks, run_all, *arguments) == 0


@pytest.mark.parametrize("name", PLUGINS)
def test_the_curve_is_that_of_ddp_on_one_process_and_goes_on_bit_for_bit(runs, name, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ranks, plugin, half = PLUGINS[name]
    cases = {case: CASES[case] for case in FEWER.get(name, CASES)}
    full, halved = orders(runs, name, plugin, cases, "fp32"), orders(runs, name, plugin, HALF, half)
    again = [(order, GO_ON[order.folder.name]) for order in [*full, *halved] if order.folder.name in GO_ON]
    start(ranks, [*full, *halved], again)

    for case in cases:
        ours, theirs = runs / name / "fp32" / case, runs / "ddp" / "fp32" / case
        for a, b in zip(read_metrics(theirs / "metrics.jsonl"), read_metrics(ours / "metrics.jsonl"), strict=True):
            assert a.keys() == b.keys()
            if abs(a["rewards/margin"]) < 1e-5:  # policy and reference are equal: rounding decides who is ahead
                del a["rewards/accuracy"]
            for metric in a.keys() - RATES:
                # rewards are differences of float32 log-probabilities: near 0 they have no relative precision
                close = 2e-6 if metric.startswith(("rewards/", "log_odds")) else 0
                assert b[metric] == pytest.approx(a[metric], rel=1e-4, abs=close), (case, metric, a["split"], a["step"])
        assert (ours / "samples.md").read_text() == (theirs / "samples.md").read_text()
    for case in HALF:
        ours, theirs = runs / name / half / case, runs / "ddp" / "bf16" / case
        for a, b in zip(read_metrics(theirs / "metrics.jsonl"), read_metrics(ours / "metrics.jsonl"), strict=True):
            terms = [of for of in a if of.endswith("loss")] + (["grad_norm"] if a["step"] == 1 else [])
            for metric in terms:
                assert b[metric] == pytest.approx(a[metric], rel=2e-2), (case, metric, a["split"], a["step"])
    for order, _ in again:
        whole = order.folder.with_name(f"{order.folder.name} whole")
        assert "resumed at step" in (order.folder / "run.log").read_text()
        assert numbers(order.folder) == numbers(whole)
        for file in (whole / "model").glob("*.safetensors"):
            assert (order.folder / "model" / file.name).read_bytes() == file.read_bytes()


def test_the_weights_are_one_folder_that_transformers_loads_with_the_same_numbers(runs):
    import torch
    from transformers import AutoModelForCausalLM

    def logits(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
        return model(torch.arange(1, 20)[None]).logits

    expected = logits(runs / "ddp" / "fp32" / "sgd" / "model")
    for name in ("zero1", "zero2", "tp2", "pp2", "tp2 x pp2"):
        assert torch.allclose(logits(runs / name / "fp32" / "sgd" / "model"), expected, rtol=1e-4, atol=1e-5), name
