"""Adapters under hybrid parallelism, on one rank: the curve, the saved model and the references of ddp."""

import pytest
import safetensors.torch
import torch
from adapters.small import RUN, llama, logits
from plugin_cases import compared
from support import cut_back, numbers

from orpo_exp.tracking.jsonl import read_metrics

HYBRID = ["plugin=hybrid", "layout=padded"]
KINDS = {
    "lora": ["adapter=lora"],
    "dora": ["adapter=dora", "adapter.targets=[q_proj,lm_head,embed_tokens]", "adapter.whole=[norm]"],
    "tied": ["adapter=lora", "adapter.whole=[embed_tokens]", "adapter.merge=true"],
}
HALVES = {"0": "zero1", "1": "zero1", "2": "zero2"}  # zero_stage -> the plugin that adds up alike, to the last bit


def rows(folder):
    return read_metrics(folder / "metrics.jsonl")


def compare(ours, theirs):
    for a, b in zip(rows(theirs), rows(ours), strict=True):
        for metric in compared(a):
            # rewards are differences of float32 log-probabilities: near 0 they have no relative precision
            close = 2e-6 if metric.startswith(("rewards/", "log_odds")) else 0
            assert b[metric] == pytest.approx(a[metric], rel=1e-4, abs=close), (metric, a["split"], a["step"])


@pytest.mark.parametrize("kind", KINDS)
def test_curve_and_saved_model_are_those_of_ddp(run, base, kind):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    if kind == "tied":
        llama(tie_word_embeddings=True).save_pretrained(base)
    loads = AutoModelForCausalLM if kind == "tied" else AutoPeftModelForCausalLM
    theirs = run("+experiment=orpo", *RUN, *KINDS[kind], "layout=padded", folder="ddp")
    ours = run("+experiment=orpo", *RUN, *KINDS[kind], *HYBRID, folder="hybrid")
    compare(ours, theirs)
    files = [sorted(file.name for file in (folder / "model").iterdir()) for folder in (ours, theirs)]
    assert files[0] == files[1]
    expected = logits(loads.from_pretrained(theirs / "model"))
    torch.testing.assert_close(logits(loads.from_pretrained(ours / "model")), expected, rtol=1e-4, atol=1e-5)
    before = logits(AutoModelForCausalLM.from_pretrained(base))
    assert (expected - before).abs().max() > 1e-2


@pytest.mark.parametrize("stage", HALVES)
def test_with_weights_of_16_bits_all_is_as_with_zero_and_a_cut_run_goes_on_bit_for_bit(run, base, stage):
    given = ["+experiment=orpo", *RUN, "adapter=lora", "adapter.rank=2", "plugin.precision=bf16_weights"]
    theirs = run(*given, f"plugin={HALVES[stage]}", "layout=padded", folder="zero")
    command = [*given, *HYBRID, f"plugin.zero_stage={stage}", "train.save_every=2"]
    ours = run(*command, folder="hybrid")
    assert [row["loss"] for row in rows(ours)] == [row["loss"] for row in rows(theirs)]
    held = safetensors.torch.load_file(ours / "checkpoints" / "step-00000004" / "policy-0.safetensors")
    assert all("lora_" in name for name in held)
    weights = [of for name, of in held.items() if name.endswith("/weight")]
    assert {of.dtype for of in weights} == {torch.float32}
    cut_back(ours, 2)
    run(*command, folder="hybrid")
    assert numbers(ours) == numbers(ours.with_name("hybrid whole"))


def test_references_are_those_of_ddp_and_base_needs_no_second_model(run, base, tmp_path):
    given = ["+experiment=dpo_baseline", *RUN, "adapter=lora"]
    theirs = run(*given, "layout=padded", "reference=frozen", folder="ddp")
    held = {}
    for reference in ("base", "frozen", "cached"):
        more = [f"reference.folder={tmp_path / 'cache'}"] if reference == "cached" else []
        ours = run(*given, *HYBRID, f"reference={reference}", *more, folder=reference)
        compare(ours, theirs)
        said = (ours / "run.log").read_text()
        held[reference] = said.partition("per rank weights ")[2].partition(",")[0]
        assert "8,192 of them trained (18.75%)" in said
    assert abs(rows(theirs)[-1]["loss"] - rows(theirs)[0]["loss"]) > 0.01
    assert held == {"base": "207 kB", "frozen": "349 kB", "cached": "175 kB"}  # of 32.8 kB that are trained
