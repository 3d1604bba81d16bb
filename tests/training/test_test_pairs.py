"""The pairs of the test: scored once, after training, and by nothing that chooses."""

import json
from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from support import uneven_rows

from orpo_exp.tracking.jsonl import read_metrics
from orpo_exp.training import Loop

SHORT = [
    "+experiment=orpo", "model=tiny", "data.path=pairs.jsonl", "data.eval_size=6", "data.test_size=5",
    "train.max_steps=4", "train.global_batch_size=8", "train.eval_every=2", "train.save_every=2", "train.samples=1",
    "train.sample_tokens=2", "tracker=[]", "optimizer.lr=1e-3",
]  # fmt: skip


ROWS = uneven_rows(24)  # what pairs_file holds


def mean_logps(folder, row):
    """Of both answers per token, by the saved model in float64, as transformers runs it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "model", torch_dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompt = tokenizer(row["prompt"]).input_ids
    means = []
    for answer in ("chosen", "rejected"):
        ids = [*tokenizer(row[answer], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logps = model(torch.tensor([prompt + ids])).logits[0, :-1].log_softmax(-1)
        of_answer = logps[len(prompt) - 1 :].gather(1, torch.tensor(ids)[:, None])
        means.append(of_answer.mean().item())
    return means


def test_they_are_scored_once_with_the_final_weights(run, pairs_file):
    folder = run(*SHORT)
    result = json.loads((folder / "result.json").read_text())
    tested = read_metrics(folder / "metrics.jsonl", "test")
    assert [record["step"] for record in tested] == [4]
    assert result["test"].items() <= tested[0].items()
    assert result["test"].keys() == result["eval"].keys()
    pairs = parquet.read_table(folder / "test_pairs.parquet").to_pydict()
    held_out = parquet.read_table(folder / "pairs.parquet").to_pydict()["row"]
    assert len(pairs["row"]) == 5
    assert not {ROWS[row]["prompt"] for row in pairs["row"]} & {ROWS[row]["prompt"] for row in held_out}
    assert parquet.read_table(folder / "test.parquet")["prompt"].to_pylist() == [
        ROWS[row]["prompt"] for row in pairs["row"]
    ]
    means = [mean_logps(folder, ROWS[row]) for row in pairs["row"]]
    for place, (chosen, rejected) in enumerate(means):
        assert pairs["logps/chosen"][place] == pytest.approx(chosen, rel=1e-5)
        assert pairs["rewards/accuracy"][place] == (chosen > rejected)
    assert result["test"]["logps/chosen"] == pytest.approx(sum(of for of, _ in means) / 5, rel=1e-5)


def test_they_change_nothing_and_a_run_that_goes_on_after_its_last_step_is_tested(run, pairs_file, monkeypatch):
    for name, part in {"rest": ROWS[:16], "eval": ROWS[16:20], "test": ROWS[20:]}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    named = [word for word in SHORT if "test_size" not in word]
    named += ["data.path=rest.jsonl", "data.eval_path=eval.jsonl"]
    plain = run(*named, folder="plain")
    with monkeypatch.context() as broken:
        broken.setattr(Loop, "test", lambda loop: 1 / 0)
        run(*named, "data.test_path=test.jsonl", folder="tested", code=1)
    tested = run(*named, "data.test_path=test.jsonl", folder="tested")
    curves = [
        [[record["step"], record["split"], record["loss"]] for record in read_metrics(of / "metrics.jsonl")]
        for of in (plain, tested)
    ]
    assert [record for record in curves[1] if record[1] != "test"] == curves[0]
    assert len(read_metrics(tested / "metrics.jsonl", "test")) == 1
    assert "resumed at step 4 of 4" in (tested / "run.log").read_text()
    assert json.loads((plain / "result.json").read_text())["test"] == {}
    assert not (plain / "test_pairs.parquet").exists()


def test_a_cached_reference_knows_them(run, pairs_file):
    frozen = run(*SHORT, "loss=dpo", folder="frozen")
    cached = run(*SHORT, "loss=dpo", "reference=cached", "reference.folder=scored", folder="cached")
    first, second = (json.loads((of / "result.json").read_text())["test"] for of in (frozen, cached))
    assert first == pytest.approx(second, rel=1e-6)
    assert first["rewards/margin"] != 0
