"""The loop as it runs on one rank, through the command line."""

import itertools
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from orpo_exp.losses.base import LOSSES, Scope
from orpo_exp.losses.orpo import ORPO
from orpo_exp.plugins.ddp import DDP
from orpo_exp.tracking.jsonl import read_metrics
from orpo_exp.training.loop import Loop

BASE = (
    "model=tiny",
    "data=json",
    "data.path=pairs.jsonl",
    "data.eval_size=2",
    "train.global_batch_size=8",
    "train.epochs=3",
    "optimizer.lr=1e-3",
    "train.max_grad_norm=null",
    "train.samples=1",
    "train.sample_tokens=4",
    "tracker=[]",
)
TERMS = ("loss", "nll_loss", "odds_ratio_loss", "grad_norm")


def numbers(folder: Path, *names: str, split: str = "train") -> list[list[float]]:
    return [[row[name] for name in names] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == split]


def assert_same_curve(folder: Path, other: Path) -> None:
    ours, theirs = (torch.tensor(numbers(f, *TERMS), dtype=torch.float64) for f in (folder, other))
    assert len(ours) == 9
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    on_eval = [name for name in TERMS if name != "grad_norm"]
    ours, theirs = (torch.tensor(numbers(f, *on_eval, split="eval"), dtype=torch.float64) for f in (folder, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_micro_batches_change_no_number(run, pairs_file, optimizer):
    """22 training pairs in batches of 8: every third batch is short."""
    whole = run(*BASE, f"optimizer={optimizer}", "train.micro_batch_size=8", folder="whole")
    for size in (1, 3):
        split = run(*BASE, f"optimizer={optimizer}", f"train.micro_batch_size={size}", folder=f"by-{size}")
        assert_same_curve(whole, split)


class BatchORPO(ORPO):
    """ORPO that says it must see the whole batch at once."""

    scope = Scope.batch


@pytest.mark.parametrize("size", [8, 3])
def test_batch_scope_takes_two_passes_to_the_same_gradient(run, pairs_file, monkeypatch, size):
    plain = run(*BASE, "train.micro_batch_size=8", folder="plain")
    monkeypatch.setitem(LOSSES._class_of, ORPO.Config, BatchORPO)
    assert_same_curve(plain, run(*BASE, f"train.micro_batch_size={size}", folder="batch"))


def test_bf16_is_close_and_leaves_the_weights_in_float32(run, pairs_file):
    from safetensors.torch import load_file

    exact, rounded = run(*BASE, folder="fp32"), run(*BASE, "plugin.precision=bf16", folder="bf16")
    ours, theirs = (torch.tensor(numbers(f, *TERMS)) for f in (exact, rounded))
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0)
    assert {t.dtype for t in load_file(rounded / "model" / "model.safetensors").values()} == {torch.float32}


def test_gradient_checkpointing_changes_no_number(run, pairs_file):
    plain = run(*BASE, folder="plain")
    assert_same_curve(plain, run(*BASE, "model.gradient_checkpointing=true", folder="checkpointed"))


def test_the_gradient_norm_is_the_one_before_clipping(run, pairs_file):
    free, clipped = (
        run(*BASE, f"train.max_grad_norm={norm}", "optimizer=sgd", "train.max_steps=2", folder=f"norm-{norm}")
        for norm in ("null", 0.01)
    )
    (first, second), (first_clipped, second_clipped) = numbers(free, "grad_norm"), numbers(clipped, "grad_norm")
    assert first[0] == pytest.approx(first_clipped[0], rel=1e-6)
    assert first[0] > 0.01
    assert second[0] != pytest.approx(second_clipped[0], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(run, pairs_file, monkeypatch, capfd):
    whole, updates = ORPO.__call__, []
    step = DDP.step

    def broken(self, policy, reference, weight, counts):
        out = whole(self, policy, reference, weight, counts)
        if torch.is_grad_enabled() and len(updates) == 2:
            out.terms["odds_ratio_loss"] = out.terms["odds_ratio_loss"] * math.nan
            out.per_pair["log_odds_ratio"] = out.per_pair["log_odds_ratio"] * math.nan
        return out

    monkeypatch.setattr(ORPO, "__call__", broken)
    monkeypatch.setattr(DDP, "step", lambda self, lr: updates.append(lr) or step(self, lr))
    folder = run(*BASE, "train.micro_batch_size=8", code=1)
    assert len(updates) == 2
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed"
    assert "step 3 is not finite: " in result["error"]
    assert "odds_ratio_loss = nan" in result["error"]
    assert "rows of the data" in result["error"]
    assert "Traceback" not in capfd.readouterr().err


def test_a_gradient_that_is_not_finite_updates_nothing(run, pairs_file, monkeypatch):
    weights: list[torch.Tensor] = []
    step = DDP.step

    def broken(self, lr):
        parameter = next(self.policy.model.parameters())
        weights.append(parameter.detach().clone())
        parameter.grad.view(-1)[0] = math.inf
        norm = step(self, lr)
        weights.append(parameter.detach().clone())
        return norm

    monkeypatch.setattr(DDP, "step", broken)
    folder = run(*BASE, code=1)
    assert torch.equal(*weights)
    assert "grad_norm = inf" in json.loads((folder / "result.json").read_text())["error"]


def test_a_signal_ends_the_run_between_two_steps(run, pairs_file, monkeypatch):
    step = Loop.train_step

    def interrupting(self):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(Loop, "train_step", interrupting)
    folder = run(*BASE, code=128 + signal.SIGTERM)
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("interrupted", 2)
    assert len(numbers(folder, "loss")) == 2


def test_evaluation_covers_every_pair_once_and_is_no_mean_of_means(run, pairs_file):
    """The evaluation after training equals what the saved weights give in one batch."""
    folder = run(*BASE, "data.eval_path=pairs.jsonl", "train.micro_batch_size=5", "train.max_steps=1")
    again = run(
        *BASE, "data.eval_path=pairs.jsonl", "train.micro_batch_size=24", "train.max_steps=1", "model=hf",
        f"model.path={folder / 'model'}", folder="again",
    )  # fmt: skip
    after, before = (read_metrics(f / "metrics.jsonl") for f in (folder, again))
    ended = next(row for row in after if row["split"] == "eval" and row["step"] == 1)
    began = next(row for row in before if row["split"] == "eval" and row["step"] == 0)
    for name in ("loss", "nll_loss", "odds_ratio_loss", "logps/chosen", "logps/rejected", "rewards/accuracy"):
        assert ended[name] == pytest.approx(began[name], rel=1e-6)


def test_an_adaptive_schedule_moves_lam_and_evaluation_uses_the_steps_own(run, pairs_file):
    folder = run(*BASE, "lam_schedule=target_margin", "lam_schedule.target=5", "train.eval_every=3")
    rows = read_metrics(folder / "metrics.jsonl")
    lams = [row["lam"] for row in rows if row["split"] == "train"]
    assert lams[0] == 0.1
    assert all(later > earlier for earlier, later in itertools.pairwise(lams))  # the margin is far below 5
    at = {(row["step"], row["split"]): row["lam"] for row in rows}
    assert all(lam == at[step, "train"] for (step, split), lam in at.items() if split == "eval" and step > 0)
