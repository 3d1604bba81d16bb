"""Every pair of what may be combined, and runs on a CPU, trains a step beside ddp on one process.

`uv run pytest -m slow`. The rows are those of combinations.csv; what a pair is: tests/combinations.py.
"""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from combinations import (
    MOST,
    RANKS,
    allowed,
    base,
    command,
    config_of,
    factors,
    held_by,
    options,
    parts,
    random_rows,
    read,
)
from support import order_of, run_all, uneven_rows

from orpo_exp.models.attention import Attention
from orpo_exp.plugins import start_ranks
from orpo_exp.runs.order import RunOrder
from orpo_exp.tracking.jsonl import read_metrics

pytestmark = pytest.mark.slow

ROWS = read()
IDS = [f"{number:02} {row['plugin']}, {row['plugin.precision']}, {row['loss']}" for number, row in enumerate(ROWS)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Where all runs lie: <row> and what it is compared with, <row>, alone."""
    folder = tmp_path_factory.mktemp("combinations")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(10)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        orders: dict[int, list[RunOrder]] = {1: [], 2: [], 4: []}  # by ranks
        for name, row in zip(IDS, ROWS, strict=True):
            if row["optimizer"] in factors()["optimizer"]:
                order = replace(order_of(*command(row)), folder=folder / name)
                assert order.config == config_of(row)
                orders[RANKS[row["plugin"]]].append(order)
                orders[1] += [alone(order)] if order.config.model.dropout == 0 else []
        for ranks, of in orders.items():
            start_ranks(ranks, run_all, of)
    return folder


def alone(order: RunOrder) -> RunOrder:
    """The same run on one process, in float32, each answer in a row of its own, with nothing split or saved."""
    config = order.config
    model = replace(config.model, attention=Attention.sdpa, gradient_checkpointing=False)
    train = replace(config.train, micro_batch_size=config.train.global_batch_size)
    plain = {"plugin": base().plugin, "layout": parts()["layout"]["padded"]}
    choices = config.choices | {"plugin": "ddp", "layout": "padded"}
    whole = replace(config, model=model, train=train, choices=choices, **plain)
    return replace(order, config=whole, folder=order.folder.with_name(f"{order.folder.name}, alone"))


def test_every_plugin_but_gemini_is_in_one_of_a_few_rows():
    assert len(ROWS) <= MOST
    assert all(row.keys() == factors().keys() for row in ROWS)
    plugins = {override for overrides in options("plugin").values() for override in overrides[:1]}
    assert {options("plugin")[row["plugin"]][0] for row in ROWS} == plugins - {"plugin=gemini"}  # which wants a GPU


def test_every_pair_that_the_checks_allow_is_in_a_row():
    """Of thousands of random rows, rare kinds as often as others."""
    held = frozenset().union(*map(held_by, ROWS))
    for row in random_rows(random.Random(1), 5000):
        assert not allowed(row) - held, "write others by `python tests/combinations.py`"


@pytest.mark.parametrize(("name", "row"), zip(IDS, ROWS, strict=True), ids=IDS)
def test_a_row_trains_a_step_as_one_process_does(runs, name, row):
    if row["optimizer"] not in factors()["optimizer"]:
        pytest.skip("this machine cannot compile its kernel")
    result = json.loads((runs / name / "result.json").read_text())
    assert (result["status"], result["error"]) == ("completed", None)
    first, step, _ = ours = list(read_metrics(runs / name / "metrics.jsonl"))
    assert [(line["split"], line["step"]) for line in ours] == [("eval", 0), ("train", 1), ("eval", 1)]
    assert all(math.isfinite(line["loss"]) for line in ours)
    if row["model.dropout"] != "0.0":  # then the loss depends on how the work is split
        return
    expected = list(read_metrics(runs / f"{name}, alone" / "metrics.jsonl"))
    if step.get("overflows"):  # nothing was updated
        expected[2] = first
    within = 1e-4 if row["plugin.precision"] == "fp32" else 2e-2
    for a, b in zip(expected, ours, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=within), (b["split"], b["step"])
    if row["plugin.precision"] == "fp32":
        assert step["grad_norm"] == pytest.approx(expected[1]["grad_norm"], rel=within)
