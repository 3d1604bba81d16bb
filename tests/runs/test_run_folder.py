"""The contract of a run's folder, on one run through the command line."""

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from orpo_exp.tracking.jsonl import read_metrics

METRICS = {
    "loss", "nll_loss", "odds_ratio_loss", "log_odds_ratio", "rewards/chosen", "rewards/rejected", "rewards/margin",
    "rewards/accuracy", "logps/chosen", "logps/rejected", "logps/accuracy", "lam",
}  # fmt: skip
RESULT = {
    "status", "error", "config_hash", "overrides", "seed", "git", "versions", "hardware", "world_size", "steps",
    "total_steps", "eval", "test",
    "pairs_per_second", "tokens_per_second", "peak_memory_bytes", "wall_time_seconds", "requeues", "heartbeat", "host",
    "pid", "job_id", "settings", "metrics",
}  # fmt: skip


@pytest.fixture
def folder(run, pairs_file) -> Path:
    return run(
        "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=4", "train.global_batch_size=8",
        "train.max_steps=4", "train.eval_every=2", "train.samples=2", "train.sample_tokens=5", "loss.lam=0.3",
    )  # fmt: skip


def test_the_folder_holds_what_the_contract_says(folder):
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == RESULT
    assert (result["status"], result["error"], result["steps"], result["world_size"]) == ("completed", None, 4, 1)
    assert set(result["eval"]) == METRICS
    assert result["peak_memory_bytes"] > 10**7
    assert result["pairs_per_second"] > 0
    assert "loss.lam=0.3" in result["overrides"]

    config = OmegaConf.load(folder / "config.yaml")
    assert config.loss.lam == 0.3
    assert config.choices.loss == "orpo"

    rows = read_metrics(folder / "metrics.jsonl")
    assert [(row["step"], row["split"]) for row in rows] == [
        (0, "eval"), (1, "train"), (2, "train"), (2, "eval"), (3, "train"), (4, "train"), (4, "eval"),
    ]  # fmt: skip
    for row in rows:
        train_only = {"lr", "grad_norm", "pairs_per_second", "tokens_per_second"} if row["split"] == "train" else set()
        assert set(row) == {"step", "split", "time"} | METRICS | train_only
        assert row["lam"] == 0.3

    samples = (folder / "samples.md").read_text()
    assert samples.count("before training") == samples.count("after training") == 2
    assert {f.name for f in (folder / "plots").iterdir()} == {"loss.png", "preference.png", "training.png"}
    assert list((folder / "tensorboard").iterdir())
    log = (folder / "run.log").read_text()
    assert "20 training pairs, 4 held out" in log
    assert not re.search(r"\x1b\[", log)


@pytest.mark.versions
def test_the_saved_model_loads_with_the_library_alone(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert (folder / "model" / "model.safetensors").exists()
    assert not list((folder / "model").glob("*.bin"))
    ids = tokenizer("red house", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]
    assert tokenizer.decode(ids[0]) == "red house"
