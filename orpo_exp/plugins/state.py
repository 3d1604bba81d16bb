"""What is kept of a rank besides the weights: an optimizer's state as tensors by name, generators, the loss scale."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from orpo_exp.plugins.precision import LossScale
from orpo_exp.plugins.ranks import Ranks
from orpo_exp.plugins.rng import rng_state, set_rng_state
from orpo_exp.schema import Refused

SCALE = "loss_scale"
MARK = "#"  # stands between the name of what is no tensor and its type
NOTHING = type(None).__name__
KINDS = {"bool": torch.bool, "int": torch.int64, "float": torch.float64, NOTHING: torch.bool}


def as_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """An optimizer's state of one parameter as tensors alone: a number, or None, is one without dimensions under
    "<name>#<type>", from which `as_state` gives back what it was.

    Raises Refused for an object of any other type.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        kind = type(value).__name__
        if isinstance(value, Tensor):
            tensors[name] = value
        elif kind in KINDS:
            tensors[f"{name}{MARK}{kind}"] = torch.tensor(False if value is None else value, dtype=KINDS[kind])
        else:
            raise Refused(
                f"this optimizer cannot be saved: its state {name!r} is a {kind}, and a checkpoint holds tensors, "
                f"numbers and None alone. Choose another optimizer, or let it keep what that object holds."
            )
    return tensors


def as_state(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `as_tensors` was given."""
    state: dict[str, Any] = {}
    for key, value in tensors.items():
        name, _, kind = key.partition(MARK)
        state[name] = None if kind == NOTHING else value.item() if kind else value
    return state


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as "<number of the parameter>/<name>": tensor. Its settings come from the configuration."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{name}": v.contiguous() for i, of in state.items() for name, v in as_tensors(of).items()}


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` took from one like it."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value.clone()  # a file read by mapping could not be removed for good
    of_parameters = {number: as_state(of) for number, of in state.items()}
    optimizer.load_state_dict({"state": of_parameters, "param_groups": optimizer.state_dict()["param_groups"]})


def save_own(folder: Path, ranks: Ranks, loss_scale: LossScale) -> str:
    """Write this rank's random number generators, and the loss scale where it moves; the file's name."""
    from safetensors.torch import save_file

    name = f"rng-{ranks.rank}.safetensors"
    scale = {SCALE: loss_scale.state()} if loss_scale.moves else {}
    save_file(rng_state(ranks.device) | scale, folder / name)
    return name


def load_own(folder: Path, ranks: Ranks, loss_scale: LossScale) -> None:
    """Go on from a `save_own`, with the generators of the rank of the same number, if there was one."""
    from safetensors.torch import load_file

    own = folder / f"rng-{ranks.rank}.safetensors"
    if own.exists():
        set_rng_state(load_file(own), ranks.device)
    if loss_scale.moves:
        loss_scale.load(load_file(folder / "rng-0.safetensors")[SCALE])
