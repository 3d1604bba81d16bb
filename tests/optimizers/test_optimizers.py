import math

import pytest
import torch
from torch import nn

from orpo_exp.optimizers.adamw import AdamW
from orpo_exp.optimizers.schedules import Constant, Cosine, InverseSqrt, Linear
from orpo_exp.optimizers.sgd import SGD
from orpo_exp.schema import ConfigError


@pytest.mark.parametrize(
    "factory", [AdamW(AdamW.Config(lr=1e-3, weight_decay=0.1)), SGD(SGD.Config(lr=0.1, weight_decay=0.1))]
)
def test_norms_and_biases_are_not_decayed(factory):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4))
    model[2].weight.requires_grad_(False)
    decayed, free = factory.make(model.parameters()).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert [p.shape for p in free["params"]] == [(4,), (4,), (4,)]


def test_warmup_rises_to_the_peak_in_steps_or_as_a_share():
    by_steps, by_share = Constant(Constant.Config(warmup=4), 40), Constant(Constant.Config(warmup=0.1), 40)
    expected = [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [by_steps.factor(step) for step in range(1, 6)] == expected
    assert [by_share.factor(step) for step in range(1, 6)] == expected


def test_decays_end_at_their_final_share():
    for schedule in (
        Linear(Linear.Config(warmup=0.0, final=0.2), 10),
        Cosine(Cosine.Config(warmup=0.0, final=0.2), 10),
    ):
        factors = [schedule.factor(step) for step in range(1, 12)]
        assert factors == sorted(factors, reverse=True)
        assert factors[0] == 1
        assert factors[-1] == pytest.approx(0.2)
    assert Linear(Linear.Config(warmup=0.0), 10).factor(6) == pytest.approx(0.5)
    assert Cosine(Cosine.Config(warmup=2), 12).factor(8) == pytest.approx(0.5)
    assert Cosine(Cosine.Config(warmup=0.0), 8).factor(3) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0, 7.0])
def test_a_run_of_one_step_has_a_rate(warmup):
    assert Cosine(Cosine.Config(warmup=warmup), 1).factor(1) > 0


def test_a_broken_number_of_warmup_steps_is_refused():
    with pytest.raises(ConfigError, match="warmup"):
        Constant.Config(warmup=3.5)


@pytest.mark.parametrize("warmup", [0, 7])
def test_the_inverse_root_is_that_of_transformers(warmup):
    """Which counts the steps that are done: its rate of a step is ours of the next, from the warmup's end on."""
    from transformers import get_inverse_sqrt_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_inverse_sqrt_schedule(optimizer, warmup)
    ours = InverseSqrt(InverseSqrt.Config(warmup=float(warmup)), 40)
    for done in range(40):
        if done >= warmup:
            assert ours.factor(done + 1) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()
