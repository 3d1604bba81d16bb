"""References beside an adapter: all give the same numbers, and `base` needs no second model."""

import math

import pytest
from adapters.small import RUN
from support import cut_back, numbers

from orpo_exp.tracking.jsonl import read_metrics

STEPS = ["loss=dpo", "train.max_steps=20", "train.eval_every=10"]


@pytest.mark.parametrize(
    "more",
    [[], ["adapter.whole=[lm_head]"], ["adapter.init=orthogonal"], ["adapter.init=pissa", "adapter.merge=true"]],
)
def test_references_give_the_same_numbers_and_base_needs_no_second_model(run, base, more, tmp_path):
    start = ["adapter=lora", *more]
    rows = {}
    for reference in ("base", "frozen", "cached"):
        more = [f"reference.folder={tmp_path / 'cache'}"] if reference == "cached" else []
        folder = run(
            "+experiment=dpo_baseline", *RUN, *STEPS, *start, f"reference={reference}", *more, folder=reference
        )
        rows[reference] = read_metrics(folder / "metrics.jsonl")
    assert abs(rows["base"][-1]["loss"] - math.log(2)) > 0.02  # it has moved
    for reference in ("frozen", "cached"):
        for a, b in zip(rows["base"], rows[reference], strict=True):
            for metric in a.keys() - {"pairs_per_second", "tokens_per_second", "seconds"}:
                if isinstance(a[metric], float):
                    assert b[metric] == pytest.approx(a[metric], rel=1e-5, abs=2e-6), (reference, metric, a["step"])


@pytest.mark.versions
def test_blocks_that_are_computed_again_give_the_same(run, base):
    """Though what goes into the first of them requires no gradient."""
    rows = []
    for again in ("false", "true"):
        command = ["+experiment=orpo", *RUN, "adapter=lora", f"model.gradient_checkpointing={again}"]
        rows.append(read_metrics(run(*command, folder=again) / "metrics.jsonl"))
    for a, b in zip(*rows, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
    assert rows[0][-1]["loss"] < rows[0][0]["loss"]


def test_with_an_adapter_the_reference_is_base_without_being_asked_for(run, base):
    folder = run("+experiment=orpo", *RUN, "loss=dpo", "adapter=lora")
    assert "reference: base" in (folder / "config.yaml").read_text()


def test_a_reference_that_follows_moves_with_an_adapter_as_well(run, base):
    follows = [*STEPS, "adapter=lora", "reference=synced", "reference.every=5", "train.save_every=7"]
    whole_run = run("+experiment=orpo", *RUN, *follows, folder="whole")
    folder = run("+experiment=orpo", *RUN, *follows)
    cut_back(folder, 7)
    run("+experiment=orpo", *RUN, *follows)
    assert numbers(folder) == numbers(whole_run)
    margin = {
        row["step"]: row["rewards/margin"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"
    }
    assert abs(margin[6]) < abs(margin[5])
