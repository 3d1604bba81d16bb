"""Reference policies through the loop: which one is chosen changes no number, unless it is one that moves."""

import json
import math
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from orpo_exp.plugins.ddp import DDP
from orpo_exp.tracking.jsonl import read_metrics
from orpo_exp.training import reference

BASE = (
    "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=4", "train.global_batch_size=8",
    "train.epochs=2", "train.samples=0", "tracker=[]", "optimizer.lr=1e-3", "train.max_grad_norm=null",
)  # fmt: skip
SKIP = {"time", "pairs_per_second", "tokens_per_second"}


def numbers(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in SKIP} for row in read_metrics(folder / "metrics.jsonl")]


def with_reference(name: str, *arguments: str) -> list[str]:
    folder = ["reference.folder=references"] if name == "cached" else []
    return [*BASE, f"reference={name}", *folder, *arguments]


def assert_same_numbers(folder: Path, other: Path) -> None:
    ours, theirs = numbers(folder), numbers(other)
    assert len(ours) == len(theirs) > 4
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert a.pop("split") == b.pop("split")
        if abs(a["rewards/margin"]) < 1e-5:  # policy and reference are equal: rounding decides who is ahead
            del a["rewards/accuracy"], b["rewards/accuracy"]
        for name, value in a.items():
            assert value == pytest.approx(b[name], rel=1e-4, abs=2e-6), name


@pytest.mark.parametrize("loss", [pytest.param("dpo", marks=pytest.mark.versions), "aot"])
def test_frozen_and_cached_references_give_the_same_numbers(run, pairs_file, loss):
    frozen = run(*with_reference("frozen", f"loss={loss}"), folder="frozen")
    cached = run(*with_reference("cached", f"loss={loss}", "train.micro_batch_size=3"), folder="cached")
    assert_same_numbers(frozen, cached)


def test_policy_and_reference_are_equal_before_training(run, pairs_file):
    first = numbers(run(*with_reference("frozen", "loss=dpo", "train.max_steps=1")))[0]
    assert first["preference_loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert first["rewards/margin"] == 0


def test_cached_references_are_read_again_and_hold_no_second_model(run, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setattr(DDP, "hold_reference", lambda self, build: pytest.fail("a second model"))
    first = run(*with_reference("cached", "loss=dpo"), folder="first")
    (file,) = (tmp_path / "references").iterdir()
    written = file.stat().st_mtime_ns
    second = run(*with_reference("cached", "loss=dpo"), folder="second")
    assert file.stat().st_mtime_ns == written
    assert "read from" in (second / "run.log").read_text()
    assert numbers(first) == numbers(second)
    run(*with_reference("cached", "loss=dpo", "seed=1"), folder="third")  # other weights, another file
    assert len(list((tmp_path / "references").iterdir())) == 2


def test_a_synced_reference_moves(run, pairs_file):
    """With mix 1 after every step, policy and reference are equal at each step's start: the loss is ln 2 throughout."""
    rows = numbers(run(*with_reference("synced", "loss=dpo", "reference.every=1", "reference.mix=1.0")))
    trained = [row["preference_loss"] for row in rows if row["split"] == "train"]
    assert trained == pytest.approx([math.log(2)] * len(trained), abs=1e-9)


@pytest.mark.parametrize("loss", ["kto", "aot", "dpo", "orpo_colossalchat"])
def test_micro_batches_change_no_number(run, pairs_file, loss):
    whole = run(*with_reference("frozen", f"loss={loss}", "train.micro_batch_size=8"), folder="whole")
    split = run(*with_reference("frozen", f"loss={loss}", "train.micro_batch_size=3"), folder="split")
    assert_same_numbers(whole, split)


def test_wpo_asks_for_the_summed_squared_probabilities(run, pairs_file):
    plain = numbers(run(*with_reference("frozen", "loss=dpo"), folder="plain"))
    weighted = numbers(run(*with_reference("frozen", "loss=dpo", "loss.wpo=true"), folder="wpo"))
    assert weighted[1]["preference_loss"] != pytest.approx(plain[1]["preference_loss"], rel=1e-3)
    again = numbers(run(*with_reference("cached", "loss=dpo", "loss.wpo=true"), folder="cached"))
    for a, b in zip(weighted, again, strict=True):
        assert a["preference_loss"] == pytest.approx(b["preference_loss"], rel=1e-4)


def test_kto_cannot_use_cached_references(capfd, pairs_file):
    from orpo_exp.cli import main

    assert main(with_reference("cached", "loss=kto")) == 2
    assert "frozen or synced" in capfd.readouterr().err


def test_the_mismatched_answers_are_the_next_pairs(run, pairs_file):
    result = json.loads((run(*with_reference("frozen", "loss=kto", "train.max_steps=2")) / "result.json").read_text())
    assert result["eval"]["kl"] >= 0
    assert torch.isfinite(torch.tensor(result["eval"]["loss"]))


def test_two_runs_may_write_the_same_log_probabilities_at_once(tmp_path, monkeypatch):
    path, tensors = tmp_path / "references.safetensors", {"rows": torch.arange(3)}
    save, own = safetensors.torch.save_file, os.getpid()

    def interrupted(content, file):
        save(content, file)
        if os.getpid() == own:  # another process writes them too, between this one's two steps
            child = os.fork()
            if child == 0:
                reference._write(path, content)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    reference._write(path, tensors)
    assert torch.equal(safetensors.torch.load_file(path)["rows"], tensors["rows"])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
