"""fp16's loss scale: what overflows is skipped and counted, and not for ever; and numbers next to zero."""

import json
import math

import pytest
import torch

from orpo_exp.plugins import Place, base
from orpo_exp.plugins.ddp import DDP
from orpo_exp.plugins.precision import MOST_OVERFLOWS, LossScale, Precision, arithmetic_as_before, squares
from orpo_exp.plugins.ranks import left_afterwards
from orpo_exp.tracking.jsonl import read_metrics

RUN = (
    "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=3", "train.global_batch_size=8", "tracker=[]",
    "train.samples=0", "train.max_steps=4", "train.log_every=1", "plugin.precision=fp16", "scheduler=constant",
)  # fmt: skip


def test_it_is_halved_at_an_overflow_and_doubled_after_many_good_steps():
    scale = LossScale(Precision.fp16)
    assert scale.scale == 2.0**16
    assert not scale.judge(math.inf, None)
    assert (scale.scale, scale.overflows, scale.told(math.inf)) == (2.0**15, 1, None)
    for _ in range(LossScale.growth_interval):
        assert scale.judge(1.0, None)
    assert (scale.scale, scale.overflows, scale.told(1.0)) == (2.0**16, 1, 1.0)
    again = LossScale(Precision.fp16)
    again.load(scale.state())
    assert vars(again) | {"_divisor": 0} == vars(scale) | {"_divisor": 0}


def test_the_last_of_too_many_overflows_in_a_row_is_told():
    scale = LossScale(Precision.fp16)
    told = [scale.told(math.nan) for _ in range(MOST_OVERFLOWS) if not scale.judge(math.nan, None)]
    assert told[:-1] == [None] * (MOST_OVERFLOWS - 1)
    assert math.isnan(told[-1])


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16, Precision.bf16_weights])
def test_other_precisions_have_none_and_a_gradient_that_is_not_finite_is_told_at_once(precision):
    scale = LossScale(precision)
    assert not scale.judge(math.inf, None)
    assert (scale.scale, scale.told(math.inf), scale.metrics()) == (1.0, math.inf, {})


def test_gradients_are_divided_by_the_scale_and_so_that_their_norm_is_clipped():
    scale = LossScale(Precision.fp16)
    scale.judge(10.0, 2.0)
    assert scale.get_grad_div_scale() == pytest.approx(2.0**16 * 5)
    scale.judge(1.0, 2.0)
    assert scale.get_grad_div_scale() == 2.0**16


def test_squares_count_what_several_ranks_have_once():
    assert squares([(torch.tensor([3.0, 4.0]), 1), (torch.tensor([2.0], dtype=torch.bfloat16), 4)]) == 26.0
    assert squares([]) == 0.0


def scaled_by(first: float) -> type[LossScale]:
    class Scaled(LossScale):
        def __init__(self, precision: Precision) -> None:
            super().__init__(precision)
            self.scale = first

    return Scaled


def test_steps_that_overflow_are_skipped_and_counted(run, pairs_file, monkeypatch):
    monkeypatch.setattr(base, "LossScale", scaled_by(2.0**30))
    folder = run(*RUN, "train.max_steps=25")
    steps = [row for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]
    assert steps[0]["overflows"] >= 1
    assert "grad_norm" not in steps[0]
    assert steps[-1]["overflows"] < len(steps)
    assert steps[-1]["grad_norm"] > 0


def test_a_run_in_which_every_step_overflows_fails(run, pairs_file, monkeypatch):
    monkeypatch.setattr(base, "LossScale", scaled_by(2.0**400))
    folder = run(*RUN, "train.max_steps=30", code=1)
    assert f"step {MOST_OVERFLOWS} is not finite" in json.loads((folder / "result.json").read_text())["error"]


def test_a_cpu_has_no_numbers_next_to_zero_while_a_run_lasts():
    """They are what Adam's moments fade to, and take a core ten times as long."""
    torch.set_flush_denormal(False)  # another test may have left it
    tiny = torch.tensor(2.0**-130)
    with arithmetic_as_before(), left_afterwards():
        DDP(DDP.Config(), Place())
        assert float(tiny * 1.0) == 0
    assert float(tiny * 1.0) > 0
