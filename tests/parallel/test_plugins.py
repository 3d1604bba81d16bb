"""Every plugin that runs on CPUs: the curve of ddp on one process, resumed bit for bit. `uv run pytest -m parallel`.

The fixed run of plugin_cases.py. The ranks of a plugin are started once. The whole grid: `benchmarks/plugin_grid.py`.
"""

from pathlib import Path

import pytest
from plugin_cases import ALONE, CASES, PLUGINS, compared, orders, write_pairs
from pyarrow import parquet
from support import numbers, run_all

from orpo_exp.plugins import start_ranks
from orpo_exp.tracking.jsonl import read_metrics

pytestmark = pytest.mark.parallel

HALF = {"orpo": ["loss=orpo", "train.max_steps=20", "train.save_every=8"], "dpo": ["loss=dpo"]}
GO_ON = {"orpo": 8, "kto, synced": 3}  # cut back to this step, a second time
FEWER = {  # of the cases, where others have tried them all
    "zero2": ["orpo", "sgd", "batch scope", "clipped", "kto, synced"],
    "zero2_offload": ["orpo", "clipped"],
    "sp2": ["orpo", "clipped", "kto, synced"],
    "tp2 x pp2": ["orpo", "sgd", "batch scope", "clipped"],
    "dp2 x pp2": ["orpo", "batch scope", "clipped"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Where all runs of this module lie: <plugin>/<case>; those of ddp on one process are there."""
    folder = tmp_path_factory.mktemp("plugins")
    write_pairs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        start(1, orders(folder, "ddp", ALONE, CASES, "fp32") + orders(folder, "ddp", ALONE, HALF, "bf16"))
    return folder


def start(ranks, *arguments):
    assert start_ranks(ranks, run_all, *arguments) == 0


@pytest.mark.parametrize("name", PLUGINS)
def test_the_curve_is_that_of_ddp_on_one_process_and_goes_on_bit_for_bit(runs, name, monkeypatch, capfd):
    monkeypatch.chdir(runs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ranks, plugin, half = PLUGINS[name]
    cases = {case: CASES[case] for case in FEWER.get(name, CASES)}
    full, halved = orders(runs, name, plugin, cases, "fp32"), orders(runs, name, plugin, HALF, half)
    again = [(order, GO_ON[order.folder.name]) for order in [*full, *halved] if order.folder.name in GO_ON]
    start(ranks, [*full, *halved], again)
    said = "".join(capfd.readouterr())
    assert f"{ranks} ranks" in said
    assert "Warning" not in said  # a user could do nothing about it

    for case in cases:
        ours, theirs = runs / name / "fp32" / case, runs / "ddp" / "fp32" / case
        for a, b in zip(read_metrics(theirs / "metrics.jsonl"), read_metrics(ours / "metrics.jsonl"), strict=True):
            assert a.keys() == b.keys()
            for metric in compared(a):
                # rewards are differences of float32 log-probabilities: near 0 they have no relative precision
                close = 2e-6 if metric.startswith(("rewards/", "log_odds")) else 0
                assert b[metric] == pytest.approx(a[metric], rel=1e-4, abs=close), (case, metric, a["split"], a["step"])
        answered = [
            (of / "samples.md").read_text().partition("# Held-out pairs that it gets")[0] for of in (ours, theirs)
        ]
        assert answered[0] == answered[1]
        ours, theirs = (parquet.read_table(of / "pairs.parquet").to_pydict() for of in (ours, theirs))
        assert ours.keys() == theirs.keys()
        for column in ("row", "prompt", "chosen_tokens", "rejected_tokens"):
            assert ours[column] == theirs[column]
        for column in ("chosen_logp", "rejected_logp", "logps/chosen"):
            assert ours[column] == pytest.approx(theirs[column], rel=1e-4), case
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
