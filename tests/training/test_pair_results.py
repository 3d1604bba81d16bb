"""Evaluations pair by pair: what their means are means of."""

import hashlib
import json
import math
from pathlib import Path

import pytest
from pyarrow import parquet
from support import uneven_rows

from orpo_exp.pair_tables import PAIRS, TEXTS, read_pairs, read_texts

SHORT = [
    "+experiment=orpo", "model=tiny", "data.path=pairs.jsonl", "data.eval_size=6", "train.max_steps=4",
    "train.global_batch_size=8", "train.eval_every=2", "train.samples=3", "train.sample_tokens=4", "tracker=[]",
    "optimizer.lr=1e-3",
]  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    rows = uneven_rows(24)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.mark.parametrize("loss", ["orpo", "orpo_colossalchat"])
def test_the_means_of_all_pairs_are_what_was_reported(run, rows, loss):
    folder = run(*SHORT, f"loss={loss}", "train.keep_pairs=true")
    evaluation = json.loads((folder / "result.json").read_text())["eval"]
    table = parquet.read_table(folder / "pairs.parquet")
    pairs = table.to_pydict()
    assert table.schema.metadata == {b"step": b"4"}
    assert pairs["row"] == sorted(pairs["row"])
    assert len(pairs["row"]) >= 6
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy", "logps/chosen"):
        assert math.fsum(pairs[name]) / len(pairs[name]) == pytest.approx(evaluation[name], rel=1e-12), name
    for place, row in enumerate(pairs["row"]):
        assert pairs["prompt"][place] == hashlib.sha256(rows[row]["prompt"].encode()).hexdigest()[:16]
        for answer in ("chosen", "rejected"):  # bytes are tokens, and one ends the answer
            assert pairs[f"{answer}_tokens"][place] == len(rows[row][answer].encode()) + 1
        margin = pairs["rewards/chosen"][place] - pairs["rewards/rejected"][place]
        assert pairs["rewards/margin"][place] == pytest.approx(margin)
        assert pairs["rewards/accuracy"][place] == (margin > 0)
        for answer in ("chosen", "rejected"):
            mean = pairs[f"{answer}_logp"][place] / pairs[f"{answer}_tokens"][place]
            assert mean == pytest.approx(pairs[f"logps/{answer}"][place], rel=1e-12)
    if loss == "orpo":  # over prompt and chosen answer, the first token aside
        said, counted = (sum(sum(pairs[f"{of}_{what}"]) for of in ("prompt", "chosen")) for what in ("logp", "tokens"))
        assert -said / counted == pytest.approx(evaluation["nll_loss"], rel=1e-12)
    kept = {file.name: parquet.read_table(file) for file in (folder / "pairs").iterdir()}
    assert kept.keys() == {f"step-0000000{step}.parquet" for step in (0, 2, 4)}
    assert kept["step-00000004.parquet"].equals(table)
    assert not kept["step-00000000.parquet"].equals(table)


def test_the_page_shows_the_pairs_that_it_gets_most_wrong(run, rows):
    folder = run(*SHORT)
    pairs = parquet.read_table(folder / "pairs.parquet").to_pydict()
    worst = [(m, row) for m, row in sorted(zip(pairs["rewards/margin"], pairs["row"], strict=True)) if m < 0][:3]
    assert worst
    page = (folder / "samples.md").read_text().partition("# Held-out pairs that it gets most wrong")[2]
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        f"## Row {row}, margin {margin:.4g}" for margin, row in worst
    ]
    for _, row in worst:
        assert rows[row]["prompt"] in page
        assert rows[row]["rejected"] in page
    assert not (folder / "pairs").exists()


def test_the_texts_lie_beside_the_pairs(run, rows):
    long, held_out = "x" * 700, 24
    (rows_file := Path("pairs.jsonl")).write_text(
        rows_file.read_text() + json.dumps({"prompt": long, "chosen": "yes", "rejected": long}) + "\n"
    )
    folder = run(*SHORT, "data.eval_size=1000", "data.eval_path=pairs.jsonl")
    texts, pairs = read_texts(folder / TEXTS), read_pairs(folder / PAIRS)
    assert pairs.step == 4
    assert list(texts) == pairs.rows.tolist()
    assert texts[held_out] == ("…" + "x" * 599, "yes", "x" * 599 + "…")
    assert all(texts[row] == (of["prompt"], of["chosen"], of["rejected"]) for row, of in enumerate(rows))
    table = parquet.read_table(folder / PAIRS).to_pydict()
    assert pairs.prompts == table.pop("prompt")
    assert pairs.rows.tolist() == table.pop("row")
    assert {name: of.tolist() for name, of in pairs.columns.items()} == table
