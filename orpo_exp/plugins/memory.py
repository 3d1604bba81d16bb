"""What each rank holds in training, in bytes: told before the first step, when most of it is not there yet."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from orpo_exp.plugins.ranks import Ranks

# The bytes that an optimizer keeps for a tensor that it updates; None where it does not say.
StateBytes = Callable[[Tensor], int | None]


@dataclass(frozen=True)
class Footprint:
    """The bytes that a rank holds when a step's gradient is complete, wherever they lie, paddings included. Activations
    come on top, and for moments what is on its way to other ranks.

    weights: of the policy and of the model held beside it. copies: float32 ones of the policy's. state: the
    optimizer's, its counts of steps aside; None where that is known after the first step alone.
    """

    weights: int
    copies: int
    gradients: int
    state: int | None


@dataclass(frozen=True)
class Sizes:
    """What a footprint comes from, in bytes. weights: of all models. trained: of the weights that are updated.
    updated: of these in float32. state: what the optimizer keeps for all of them; None where it does not say."""

    weights: int
    trained: int
    updated: int
    state: int | None


def footprint(
    models: Iterable[Any],
    optimizer: Any,
    state_bytes: StateBytes,
    copied: Mapping[int, Tensor] | None = None,
    ranges: int = 1,
) -> Footprint:
    """That of torch's parameters and optimizer.

    models: Scorers, with their tensors as `weights`. copied: the weight by the id of its copy, which is updated in its
    place. ranges: of how many ranks a rank keeps the gradient of what they update.
    """
    updated = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    weights = [(copied or {}).get(id(tensor), tensor) for tensor in updated]
    pairs = list(zip(updated, weights, strict=True))
    return Footprint(
        weights=sum(weight.nbytes for of in models for weight in of.weights),
        copies=sum(tensor.nbytes for tensor, weight in pairs if tensor is not weight),
        gradients=ranges * sum(tensor.numel() * weight.element_size() for tensor, weight in pairs),
        state=state_of(updated, state_bytes),
    )


def state_of(updated: Iterable[Tensor], state_bytes: StateBytes) -> int | None:
    """The bytes that an optimizer keeps for all that it updates; None where it does not say."""
    total = 0
    for tensor in updated:
        if (size := state_bytes(tensor)) is None:
            return None
        total += size
    return total


def told(ranks: Ranks, own: Footprint) -> str:
    """For people: what each rank holds, the smallest and the largest where ranks differ. Called on all of them."""
    said = [json.loads(text) for text in ranks.exchange(json.dumps(asdict(own)))]
    names = {"weights": "weights", "copies": "float32 copies", "gradients": "gradients", "state": "optimizer state"}
    return ", ".join(f"{name} {_range([of[field] for of in said])}" for field, name in names.items())


def _range(sizes: list[int | None]) -> str:
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return "not known yet"
    ends = dict.fromkeys(_size(size) for size in (min(known), max(known)))
    return " to ".join(ends)


def _size(count: float) -> str:
    """A number of bytes, to three digits."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.3g} {units[0]}"
