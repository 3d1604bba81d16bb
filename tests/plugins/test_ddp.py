"""The doors of a plugin: models that it builds, and models that a caller has boosted already."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from support import pair

from orpo_exp.layouts.padded import Padded
from orpo_exp.plugins import Place, Which
from orpo_exp.plugins.ddp import DDP
from orpo_exp.plugins.ranks import left_afterwards
from orpo_exp.types import Builder, BuiltModel, LossOutput, PairLogps

BATCHES = [Padded(Padded.Config()).collate([pair(0, [1, 2], [3, 4], [5]), pair(1, [6], [7], [8, 9])], frozenset())]


@pytest.fixture
def ddp() -> Iterator[DDP]:
    with left_afterwards():
        yield DDP(DDP.Config(), Place())


def built() -> BuiltModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BuiltModel(LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes)), lambda logits: logits)


build = Builder(whole=built, empty=built)


def likelihood(number: int, logps: PairLogps) -> LossOutput:
    loss = -logps.chosen.sum().sum()
    return LossOutput(loss, {"nll": loss.detach()})


def trained(plugin: DDP) -> tuple[list[float], PairLogps]:
    norms = []
    for _ in range(2):
        (output,) = plugin.forward_backward(BATCHES, likelihood)
        assert output.terms["nll"] == output.loss
        norms.append(plugin.step(lr=0.1))
    return norms, plugin.score(BATCHES)


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def test_a_model_that_the_caller_has_boosted_trains_as_one_that_the_plugin_builds(ddp):
    """Also one whose learning rate the caller's own scheduler sets: `step` is told what that says."""
    ddp.prepare(build, sgd, max_grad_norm=1.0)
    expected, logps = trained(ddp)
    with warnings.catch_warnings(action="ignore"):
        from colossalai.booster import Booster
        from colossalai.booster.plugin import TorchDDPPlugin

        model = build().model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        model, optimizer, *_ = Booster(plugin=TorchDDPPlugin()).boost(model, optimizer, lr_scheduler=scheduler)
    ddp.adopt(model, optimizer, lambda logits: logits, max_grad_norm=1.0)
    norms, again = trained(ddp)
    assert norms == expected
    assert again.chosen.values.equal(logps.chosen.values)


def test_each_model_is_asked_by_one_value(ddp):
    ddp.prepare(build, sgd, None)
    ddp.hold_reference(build)
    assert ddp.score(BATCHES).chosen.values.equal(ddp.score(BATCHES, Which.held).chosen.values)
    trained(ddp)
    moved, held = (ddp.score(BATCHES, which).chosen.values for which in Which)
    assert not moved.equal(held)
    ddp.models[Which.held].move_towards(ddp.models[Which.policy], 1.0)
    assert ddp.score(BATCHES, Which.held).chosen.values.equal(moved)
    assert ddp.models[Which.held].digest() == ddp.models[Which.policy].digest()


def test_where_the_gradient_is_not_finite_nothing_is_updated(ddp):
    ddp.prepare(build, sgd, None)
    before = ddp.models[Which.policy].digest()
    ddp.forward_backward(BATCHES, lambda number, logps: LossOutput(logps.chosen.sum().sum() * torch.inf, {}))
    assert not torch.tensor(ddp.step(lr=0.1)).isfinite()
    assert ddp.models[Which.policy].digest() == before
