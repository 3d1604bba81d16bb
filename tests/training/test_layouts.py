"""A layout changes no number, is settled once, and is used again where a run goes on."""

import json
from pathlib import Path

import pytest
import torch

from orpo_exp.models import base as models_base
from orpo_exp.models import segments
from orpo_exp.tracking.jsonl import read_metrics

BASE = (
    "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=2", "train.global_batch_size=8",
    "train.max_steps=50", "optimizer.lr=1e-3", "train.max_grad_norm=null", "train.eval_every=25", "train.samples=0",
    "tracker=[]",
)  # fmt: skip
LOSSES = {
    "orpo": ["loss=orpo"],
    "dpo": ["loss=dpo"],
    "simpo": ["loss=simpo"],
    "kto, mismatched answers": ["loss=kto"],
    "wpo": ["loss=dpo", "loss.wpo=true"],
    "batch scope": ["loss=orpo_colossalchat"],
}


def terms(folder: Path) -> list[list[float]]:
    """Each loss term and gradient norm, line by line."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [[value for name, value in row.items() if name.endswith("loss") or name == "grad_norm"] for row in rows]


def said(folder: Path) -> list[str]:
    return [
        line.partition("layout: ")[2] for line in (folder / "run.log").read_text().splitlines() if "layout: " in line
    ]


# those that ask for no more than others do are among the slow ones
MARKS = {"orpo": pytest.mark.versions, "dpo": pytest.mark.slow, "simpo": pytest.mark.slow}


@pytest.mark.parametrize("loss", [pytest.param(name, marks=MARKS.get(name, ())) for name in LOSSES])
def test_every_layout_has_the_same_curve(run, pairs_file, loss):
    padded = run(*BASE, *LOSSES[loss], "layout=padded", "train.micro_batch_size=8", folder="padded")
    exact = terms(padded)
    assert len(exact) == 50 + 3
    for layout in ("layout=shared_prefix", "layout=packed", "layout=auto"):
        for ours, theirs in zip(
            terms(run(*BASE, *LOSSES[loss], layout, folder=layout.partition("=")[2])), exact, strict=True
        ):
            assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.versions
@pytest.mark.parametrize("layout", ["packed", "shared_prefix"])
def test_gradient_checkpointing_attends_as_before(run, pairs_file, layout):
    base = [*BASE, f"layout={layout}", "train.micro_batch_size=3", "train.max_steps=6"]
    plain = terms(run(*base, folder="plain"))
    for keeps in ("nothing", "products"):
        again = ("model.gradient_checkpointing=true", f"model.gradient_checkpointing_keeps={keeps}")
        for ours, theirs in zip(terms(run(*base, *again, folder=keeps)), plain, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_log_says_which_layout_and_the_checkpoint_records_it(run, pairs_file):
    folder = run(*BASE, "train.max_steps=2", "train.save_every=1")
    (why,) = said(folder)
    assert why.startswith("packed, which computes ")
    split = json.loads((folder / "checkpoints/latest/manifest.json").read_text())["split"]
    assert (split["layout"], split["used.layout"], split["used.micro_batch_tokens"]) == ("auto", "packed", 1024)


def test_a_run_goes_on_with_the_layout_and_the_sizes_that_it_used(run, pairs_file, cut_off, monkeypatch):
    """Also where it would choose others now."""
    from orpo_exp.layouts import auto
    from orpo_exp.plugins.ddp import DDP

    short = [*BASE, "train.max_steps=6", "train.save_every=2"]
    whole = run(*short, folder="whole")
    cut_off(4)
    folder = run(*short, code=1)
    cut_off(0)
    monkeypatch.setattr(auto, "WORTHWHILE", 1.0)
    former = DDP.__init__

    def larger(self, *given):
        former(self, *given)
        self.micro_batch_tokens = 100

    monkeypatch.setattr(DDP, "__init__", larger)
    run(*short)
    assert said(folder)[-1] == "packed, as before"
    assert "another split of the work" not in (folder / "run.log").read_text()
    assert terms(folder) == terms(whole)
    other = run(*short, folder="other")
    assert said(other) == ["padded, for the others compute 35% fewer tokens of these pairs"]


class LooksElsewhere(segments.Attend):
    """As a model would attend that counts positions in a way of its own."""

    def __call__(self, module, query, *given, **more):
        return super().__call__(module, query.flip(2), *given, **more)


@pytest.mark.parametrize("asked", ["auto", "packed", "shared_prefix"])
def test_the_first_pairs_show_that_a_model_is_not_fit_and_the_run_falls_back(
    run, pairs_file, monkeypatch, cut_off, asked
):
    monkeypatch.setattr(models_base, "Attend", LooksElsewhere)
    short = [*BASE, "train.max_steps=4", "train.save_every=2", "model.initializer_range=0.2"]
    plain = run(*short, "layout=padded", folder="plain")
    folder = run(*short, f"layout={asked}", folder="whole")
    first = "packed" if asked == "auto" else asked
    assert said(folder)[1].startswith(
        f"padded in place of {first}, for this model's log-probabilities come out otherwise"
    )
    assert terms(folder) == terms(plain)

    cut_off(4)
    folder = run(*short, f"layout={asked}", folder="cut", code=1)
    cut_off(0)
    monkeypatch.setattr(models_base, "Attend", segments.Attend)  # it would be fit now
    run(*short, f"layout={asked}", folder="cut")
    assert said(folder)[-1] == "padded, as before"
    assert terms(folder) == terms(plain)


def test_by_tokens_or_by_pairs_the_curve_is_the_same(run, pairs_file):
    base = [*BASE, "train.max_steps=6"]
    exact = terms(run(*base, "train.micro_batch_size=8", folder="whole"))
    for size in ("train.micro_batch_tokens=1", "train.micro_batch_tokens=90", "train.micro_batch_size=auto"):
        for ours, theirs in zip(terms(run(*base, size, folder=size.replace("=", "-"))), exact, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_model_that_attends_by_a_kernel_of_its_own_is_padded(run, pairs_file):
    folder = run(*BASE, "train.max_steps=1", "model.attention=eager")
    assert said(folder) == ["padded, for a row can hold one text only: it attends by model.attention=eager"]


@pytest.mark.parametrize("size", ["many", "0", "-1", "1.5"])
def test_a_size_that_is_none_is_refused(run, pairs_file, size, capsys):
    run(*BASE, f"train.micro_batch_size={size}", code=2)
    assert "train.micro_batch_size" in capsys.readouterr().err


def test_peak_of_attention_is_no_mask_of_the_whole_row():
    """A row of 40 pairs: the largest mask is that of one answer."""
    from orpo_exp.types import Segment, Segments

    row = tuple(Segment(20, (5, 7)) for _ in range(40))
    attend = segments.Attend(Segments((row,)))
    of = torch.randn(1, 2, 40 * 32, 8)
    attend(None, of, of, of, None)
    assert {tuple(mask.shape) for mask in attend.masks.values()} == {(7, 27)}
