"""What an optimizer keeps is saved and comes back as it was: a resumed run goes on bit for bit."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from optimizer_curves import SAVED_AT, STEPS, build, every_optimizer, trained
from torch import Tensor, nn
from torch.optim import Optimizer

from orpo_exp.optimizers import OPTIMIZERS
from orpo_exp.optimizers.adafactor import Adafactor
from orpo_exp.optimizers.fused_adam import counted
from orpo_exp.optimizers.galore import Projection
from orpo_exp.plugins import Place
from orpo_exp.plugins.ddp import DDP
from orpo_exp.plugins.pieces import Held, Piece, Pieces, load_pieces, save_pieces
from orpo_exp.plugins.ranks import left_afterwards
from orpo_exp.plugins.state import as_state, as_tensors, load_optimizer_tensors, optimizer_tensors
from orpo_exp.schema import Refused


@pytest.mark.parametrize("name", every_optimizer())
def test_a_run_goes_on_bit_for_bit(name, tmp_path):
    def begun() -> DDP:
        plugin = DDP(DDP.Config(), Place())
        plugin.prepare(build, every_optimizer()[name].make, None)
        return plugin

    with left_afterwards():
        whole, resumed = begun(), begun()
        trained(whole, SAVED_AT)
        whole.save(tmp_path, held=False)
        expected = trained(whole, STEPS - SAVED_AT)
        resumed.load(tmp_path, held=False)
        assert trained(resumed, STEPS - SAVED_AT) == expected
        assert resumed.policy.digest() == whole.policy.digest()
        assert [types(of) for of in states(resumed)] == [types(of) for of in states(whole)]


@pytest.mark.parametrize("name", every_optimizer())
@pytest.mark.parametrize("settings", [{}, {"beta1": 0.9}, {"proj_type": Projection.reverse_std}, {"momentum": 0.0}])
def test_it_keeps_as_many_bytes_as_it_says(name, settings):
    """Of matrices that are high and wide, and of a norm; what a view lies in is counted whole."""
    config = every_optimizer()[name].config
    known = {field.name for field in fields(config)} & settings.keys()
    factory = OPTIMIZERS.build(replace(config, **{of: settings[of] for of in known}))
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((24, 16), (16, 24), (3, 24), (16,))]
    optimizer = factory.make(parameters)
    stepped(optimizer, parameters, 2)
    for parameter in parameters:
        tensors = [of for of in optimizer.state[parameter].values() if isinstance(of, Tensor) and of.ndim]
        held = {of.untyped_storage().data_ptr(): of.untyped_storage().nbytes() for of in tensors}
        assert sum(held.values()) == factory.state_bytes(parameter), tuple(parameter.shape)


def states(plugin: DDP) -> list[dict]:
    return [plugin.optimizer.optim.state[parameter] for parameter in plugin.policy.model.parameters()]


def types(state: dict) -> dict[str, str]:
    return {name: type(value).__name__ for name, value in state.items()}


def test_numbers_and_none_come_back_as_what_they_were():
    state = {"step": 3, "ratio": 0.1, "off": False, "big": 2**53 + 1, "buffer": None, "mean": torch.ones(2)}
    back = as_state(as_tensors(state))
    assert back.pop("mean") is state.pop("mean")
    assert [(name, type(value), value) for name, value in back.items()] == [
        (name, type(value), value) for name, value in state.items()
    ]
    with pytest.raises(Refused, match="state 'projector' is a SimpleNamespace"):
        as_tensors({"projector": SimpleNamespace()})


def test_a_checkpoint_from_before_numbers_were_marked_is_read():
    """Then a state held tensors alone, AdamW's count of steps among them."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    load_optimizer_tensors(
        optimizer, {"0/step": torch.tensor(5.0), "0/exp_avg": torch.ones(2), "0/exp_avg_sq": torch.full((2,), 2.0)}
    )
    state = optimizer.state[parameter]
    assert (state["step"].item(), state["exp_avg_sq"].tolist()) == (5.0, [2.0, 2.0])
    assert optimizer_tensors(optimizer).keys() == {"0/step", "0/exp_avg", "0/exp_avg_sq"}


def stepped(optimizer: Optimizer, parameters: Sequence[Tensor], count: int) -> None:
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()


def test_pieces_hold_means_of_rows_and_columns(tmp_path):
    """They belong to the parameter as this rank has it: another split of it is refused."""
    weights = {"matrix": torch.randn(4, 6), "norm": torch.randn(4)}
    optimizer = Adafactor(Adafactor.Config(lr=0.1)).make([nn.Parameter(w) for w in weights.values()])

    def held(optimizer: Optimizer) -> list[Held]:
        updated = [p for group in optimizer.param_groups for p in group["params"]]
        return [Held(name, Piece.whole(p.shape), p) for name, p in zip(weights, updated, strict=True)]

    stepped(optimizer, [part.tensor for part in held(optimizer)], 2)
    save_pieces(tmp_path, "all", 0, held(optimizer), optimizer)
    again = Adafactor(Adafactor.Config(lr=0.1)).make([nn.Parameter(torch.zeros(w.shape)) for w in weights.values()])
    load_pieces(Pieces(tmp_path, "all"), held(again), again)
    for ours, theirs in zip(held(again), held(optimizer), strict=True):
        assert ours.tensor.equal(theirs.tensor)
        assert types(again.state[ours.tensor]) == types(optimizer.state[theirs.tensor])
        for name, value in again.state[ours.tensor].items():
            expected = optimizer.state[theirs.tensor][name]
            assert value.equal(expected) if isinstance(value, Tensor) else value == expected
    half = Held("matrix", Piece.block((4, 6), 0, 0, 2), torch.zeros(2, 6))
    with pytest.raises(Refused, match=r"what the optimizer keeps for matrix \(exp_avg_sq_col\)"):
        load_pieces(Pieces(tmp_path, "all"), [half], again)


class GroupCounter(Optimizer):
    """As FusedAdam, which needs a GPU: the state is filled at the first step, the count lies in the group, and the
    update depends on it."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters, {})

    def step(self) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                state = self.state[parameter]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(parameter)
                parameter.data += group["step"]


def test_fused_adam_counts_its_steps_on(tmp_path: Path):
    whole, resumed = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    first, second = counted(GroupCounter([whole])), counted(GroupCounter([resumed]))
    stepped(first, [whole], 2)
    load_optimizer_tensors(second, optimizer_tensors(first))
    stepped(first, [whole], 2)
    stepped(second, [resumed], 2)
    assert (whole.item(), resumed.item()) == (1 + 2 + 3 + 4, 3 + 4)
