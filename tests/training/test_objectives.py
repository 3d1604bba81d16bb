"""The two passes of a loss that must see the whole batch: what is left out of them, and that this changes no number."""

import json
from dataclasses import replace

import pytest
from support import RATES

from orpo_exp.losses.base import LOSSES
from orpo_exp.losses.kto import KTO
from orpo_exp.plugins import Which
from orpo_exp.plugins.ddp import DDP
from orpo_exp.tracking.jsonl import read_metrics
from orpo_exp.types import Span

BASE = (
    "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=4", "train.global_batch_size=8",
    "train.micro_batch_size=3", "train.epochs=1", "train.samples=0", "tracker=[]", "optimizer=sgd",
    "optimizer.lr=1e-2", "train.max_grad_norm=null", "loss=kto",
)  # fmt: skip
COMPARED = ("loss", "kl", "rewards/margin", "grad_norm")


def test_the_mismatched_answers_are_scored_but_not_run_again_with_gradient(run, pairs_file, monkeypatch):
    trained: list[set[Span]] = []
    forward_backward = DDP.forward_backward

    def recording(self, micro_batches, objective):
        trained.extend(set(batch.score.lengths) for batch in micro_batches)
        return forward_backward(self, micro_batches, objective)

    monkeypatch.setattr(DDP, "forward_backward", recording)
    without = run(*BASE, folder="without")
    assert trained
    assert all(spans == {Span.chosen, Span.rejected} for spans in trained)

    monkeypatch.setattr(KTO, "gradient_needs", KTO.needs)
    whole = run(*BASE, folder="with")
    assert Span.mismatched_chosen in trained[-1]
    for ours, theirs in zip(*(read_metrics(folder / "metrics.jsonl") for folder in (without, whole)), strict=True):
        for name in COMPARED if ours["split"] == "train" else COMPARED[:-1]:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-9), name


def test_one_micro_batch_that_is_the_whole_batch_is_computed_once(run, pairs_file, monkeypatch):
    scored: list[int] = []
    score = DDP.score

    def counting(self, micro_batches, which=Which.policy):
        scored.append(len(micro_batches))
        return score(self, micro_batches, which)

    monkeypatch.setattr(DDP, "score", counting)
    base = [*BASE, "loss=orpo_colossalchat", "layout=padded", "train.max_steps=2", "train.eval_every=0"]
    twice, split = run(*base, folder="twice"), len(scored)
    once = run(*base, "train.micro_batch_size=8", folder="once")
    assert split - (len(scored) - split) == 2  # a pass less in each step; the others are of the evaluations
    for ours, theirs in zip(*(read_metrics(folder / "metrics.jsonl") for folder in (once, twice)), strict=True):
        for name in ours.keys() - {"split", "step", *RATES}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name


class Leaking(KTO):
    """Its loss has a gradient by the mismatched answers, and it does not say so."""

    def __call__(self, policy, reference, weight, counts):
        out = super().__call__(policy, reference, weight, counts)
        return replace(out, loss=out.loss + policy.mismatched_chosen.sum().sum())


def test_a_gradient_that_was_not_declared_is_not_lost_in_silence(run, pairs_file, monkeypatch):
    monkeypatch.setitem(LOSSES._class_of, KTO.Config, Leaking)
    folder = run(*BASE, code=1)
    assert "Span.mismatched_chosen" in json.loads((folder / "result.json").read_text())["error"]
