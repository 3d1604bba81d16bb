"""An optimizer's state as tensors by name, as safetensors keep them."""

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer


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
