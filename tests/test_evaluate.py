"""A finished run on other pairs: its own numbers on its own, and those of transformers on others."""

import json

import pytest
import torch
from pyarrow import parquet
from support import uneven_rows

from orpo_exp.evaluate import main

SHORT = [
    "+experiment=orpo", "model=tiny", "data.path=pairs.jsonl", "data.eval_size=6", "data.test_size=5",
    "train.max_steps=3", "train.global_batch_size=8", "train.samples=0", "tracker=[]", "optimizer.lr=1e-2",
]  # fmt: skip


def evaluated(run, name="held_out"):
    return json.loads((run / "evaluations" / name / "evaluation.json").read_text())


def told(run, split):
    return json.loads((run / "result.json").read_text())[split]


# an adapter that is added into the weights adds up in another order, in float32
MERGED = ["loss=orpo", "adapter=lora", "adapter.merge=true"]


@pytest.mark.parametrize(("more", "near"), [(["loss=dpo"], 0), (["loss=kto"], 0), (MERGED, 1e-6)])
def test_on_its_own_pairs_a_run_has_its_own_numbers(run, pairs_file, more, near):
    folder = run(*SHORT, *more)
    assert main([str(folder)]) == main([str(folder), "--split", "test"]) == 0
    for split, name in (("eval", "held_out"), ("test", "test")):
        assert evaluated(folder, name)["eval"] == pytest.approx(told(folder, split), rel=1e-6, abs=near)
    own = parquet.read_table(folder / "pairs.parquet")
    again = parquet.read_table(folder / "evaluations" / "held_out" / "pairs.parquet")
    assert again["row"].equals(own["row"])
    assert again["prompt"].equals(own["prompt"])
    assert abs(told(folder, "eval")["rewards/margin"]) > 1e-3


def test_of_another_file_all_pairs_are_scored(run, pairs_file, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run(*SHORT, "data.eval_path=pairs.jsonl")
    rows = [{"prompt": "q ", "chosen": "yes", "rejected": "no"}, {"prompt": "q ", "chosen": "red", "rejected": "blue"}]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(folder), "data.path=other.jsonl", "--name", "other"]) == 0
    assert "2 pairs" in capsys.readouterr().out
    found = parquet.read_table(folder / "evaluations" / "other" / "pairs.parquet").to_pydict()
    assert found["row"] == [0, 1]
    model = AutoModelForCausalLM.from_pretrained(folder / "model", torch_dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for row, mean in zip(rows, found["logps/chosen"], strict=True):
        prompt = tokenizer(row["prompt"]).input_ids
        ids = [*tokenizer(row["chosen"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        logps = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert mean == pytest.approx(logps.gather(1, torch.tensor(ids)[:, None]).mean().item(), rel=1e-5)
    assert evaluated(folder, "other")["pairs"] == 2
    assert main([str(folder), "--split", "all"]) == 0
    assert evaluated(folder, "all")["pairs"] == 2 * len(uneven_rows(24))
    assert main([str(folder), "data=toy", "data.eval_pairs=7"]) == 0


def test_what_is_no_matter_of_an_evaluation_is_refused(run, pairs_file, tmp_path, capsys):
    def refused(*given):
        assert main([str(word) for word in given]) == 2
        return capsys.readouterr().err

    folder = run(*SHORT[:4], *SHORT[5:], "loss=dpo")
    assert "what the run was trained with: 0.1" in refused(folder, "loss.beta=0.3")
    assert "the run kept no pairs for a test" in refused(folder, "--split", "test")
    assert "a file or folder that exists" in refused(folder, "data.path=nowhere.jsonl")
    assert "the name of one folder" in refused(folder, "--name", "../outside")
    assert "cannot be evaluated: there is no run" in refused(tmp_path / "nowhere")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"status": "interrupted"}))
    assert "cannot be evaluated: it is interrupted" in refused(folder)
    moved = run(*SHORT, "loss=dpo", "reference=synced", folder="moved")
    assert "a run whose reference stayed what it was" in refused(moved)
    assert not (moved / "evaluations").exists()


@pytest.mark.parallel
def test_two_ranks_and_another_plugin_give_the_same_numbers(run, pairs_file):
    folder = run(*SHORT, "loss=dpo")
    assert main([str(folder), "plugin=zero2", "processes=2", "--name", "two"]) == 0
    assert evaluated(folder, "two")["eval"] == pytest.approx(told(folder, "eval"), rel=1e-4)
