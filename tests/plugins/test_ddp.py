"""The doors of a plugin: models that it builds, and models that a caller has boosted already."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from support import pair

from orpo_exp.layouts.padded import Padded
from orpo_exp.plugins import Place, Plugin, Which
from orpo_exp.plugins.ddp import DDP
from orpo_exp.plugins.hybrid import Hybrid
from orpo_exp.plugins.ranks import left_afterwards
from orpo_exp.plugins.zero import Zero1, Zero2
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


def trained(plugin: Plugin) -> tuple[list[float], PairLogps]:
    norms = []
    for _ in range(2):
        (output,) = plugin.forward_backward(BATCHES, likelihood)
        assert output.terms["nll"] == output.loss
        norms.append(plugin.step(lr=0.1))
    return norms, plugin.score(BATCHES)


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize(
    ("plugin", "boosted_by", "settings"),
    [
        (DDP, "TorchDDPPlugin", {}),
        (Zero1, "LowLevelZeroPlugin", {"stage": 1, "precision": "fp32"}),
        (Zero2, "LowLevelZeroPlugin", {"stage": 2, "precision": "fp32"}),
        (Hybrid, "HybridParallelPlugin", {"tp_size": 1, "pp_size": 1, "precision": "fp32"}),
    ],
)
def test_a_model_that_the_caller_has_boosted_trains_as_one_that_the_plugin_builds(ddp, plugin, boosted_by, settings):
    """Also one whose learning rate the caller's own scheduler sets: `step` is told what that says."""
    ddp.prepare(build, sgd, max_grad_norm=1.0)
    expected, logps = trained(ddp)
    adopting = plugin(plugin.Config(), Place())
    with warnings.catch_warnings(action="ignore"):
        from colossalai.booster import Booster
        from colossalai.booster import plugin as plugins

        model = build().model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        booster = Booster(plugin=getattr(plugins, boosted_by)(**settings))
        model, optimizer, *_ = booster.boost(model, optimizer, lr_scheduler=scheduler)
    adopting.adopt(model, optimizer, lambda logits: logits, max_grad_norm=1.0)
    norms, again = trained(adopting)
    assert norms == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(again.chosen.values, logps.chosen.values, rtol=1e-6, atol=0)


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
