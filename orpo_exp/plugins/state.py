"""What is kept of a rank besides the weights: an optimizer's state as tensors by name, generators, the loss scale."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.optim import Optimizer

from orpo_exp.plugins.precision import LossScale
from orpo_exp.plugins.ranks import Ranks
from orpo_exp.plugins.rng import rng_state, set_rng_state

SCALE = "loss_scale"


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as "<number of the parameter>/<name>": tensor. Its settings come from the configuration."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{name}": v.contiguous() for i, of in state.items() for name, v in of.items() if v is not None}


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` took from one like it."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value.clone()  # a file read by mapping could not be removed for good
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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
