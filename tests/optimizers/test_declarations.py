"""What optimizers declare of themselves is so; what this machine lacks is told before anything is made."""

import pytest
import torch
from optimizer_curves import every_optimizer
from torch import Tensor, nn

from orpo_exp.optimizers.base import OptimizerFactory
from orpo_exp.optimizers.came import CAME
from orpo_exp.optimizers.cpu_adam import CPUAdam
from orpo_exp.optimizers.fused_adam import FusedAdam
from orpo_exp.optimizers.galore import GaLore
from orpo_exp.optimizers.lamb import Lamb
from orpo_exp.optimizers.sgd import SGD
from orpo_exp.schema import ConfigError


def updated(factory: OptimizerFactory, blocks: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """Blocks of rows after three steps, put together again."""
    parameters = [nn.Parameter(block.clone()) for block in blocks]
    optimizer = factory.make(parameters)
    for _ in range(3):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return torch.cat([parameter.detach() for parameter in parameters])


@pytest.mark.parametrize("name", every_optimizer())
def test_those_that_say_so_update_each_number_by_itself_and_the_others_do_not(name):
    torch.manual_seed(0)
    factory = every_optimizer()[name]
    weight, gradient = torch.randn(12, 10), torch.randn(12, 10)
    whole = updated(factory, [weight], [gradient])
    halves = updated(factory, list(weight.split(6)), list(gradient.split(6)))
    difference = float((whole - halves).abs().max())
    assert difference < 1e-6 if factory.elementwise else difference > 1e-5


def test_what_is_cut_or_offloaded_is_refused_with_the_reason():
    for elementwise in (SGD, CPUAdam):
        assert {elementwise.refuses(cut, offloaded) for cut in (False, True) for offloaded in (False, True)} == {None}
    assert Lamb.refuses(cut=True, offloaded=False) is None
    assert "ranks" in str(Lamb.refuses(cut=True, offloaded=True))
    assert "rows and columns" in str(CAME.refuses(cut=True, offloaded=False))
    assert CAME.refuses(cut=False, offloaded=False) is None
    assert "GPU" in str(FusedAdam.refuses(cut=False, offloaded=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_kernel_for_gpus_is_refused_without_one():
    with pytest.raises(
        ConfigError, match="optimizer: given 'FusedAdam'; allowed: an optimizer that does not need a GPU"
    ):
        FusedAdam(FusedAdam.Config(lr=1e-3))


def test_a_kernel_is_refused_without_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"does not need ninja and c\+\+ to compile its kernel at first use"):
        CPUAdam(CPUAdam.Config(lr=1e-3))


def test_galore_projects_matrices_above_its_rank_alone():
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((8, 9), (4, 9), (9,))]
    groups = GaLore(GaLore.Config(lr=1e-3, rank=4, weight_decay=0.1)).make(parameters).param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(8, 9)], [(4, 9)], [(9,)]]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0]
    assert [group.get("rank") for group in groups] == [4, None, None]
    with pytest.raises(ConfigError, match=r"optimizer\.rank: given 8; allowed: a whole number below 8"):
        GaLore(GaLore.Config(lr=1e-3, rank=8)).make(parameters)
