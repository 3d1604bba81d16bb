"""What ranks hold in training, measured: the memory behind every tensor that torch and ColossalAI have there."""

import gc
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemini_on_cpu import emulate
from host_memory import start
from support import run_all
from torch import Tensor

from orpo_exp import experiment
from orpo_exp.plugins import Place, Plugin
from orpo_exp.runs.order import RunOrder


def run_measured(
    place: Place, starts: Sequence[RunOrder], folder: Path, orders: Sequence[RunOrder], on_gemini: Sequence[RunOrder]
) -> int:
    """This rank of some starts (host_memory.py), of some runs, then of some with Gemini on a CPU.

    Of a run it writes <run>/held-<rank>.json: `said`, what the plugin said before training; `held`, what it held at the
    last step; `all`, the memory behind all floating numbers at the end.
    """
    assert start(place, starts, folder) == 0
    train = experiment.train
    gc.collect()
    gc.freeze()  # of what there is to be looked through, modules and all they hold is none

    def measured(plugin: Plugin, order: RunOrder, *rest: Any) -> None:
        found: dict[str, Any] = {}
        say, step = plugin.footprint, plugin.step

        def saying(*arguments: Any) -> Any:
            said = say(*arguments)
            found["said"] = asdict(said)
            return said

        def stepping(lr: float) -> float | None:
            gradients = storages(gradients_of(plugin))
            norm = step(lr)
            parts = {"weights": weights_of(plugin), "copies": copies_of(plugin), "state": state_of(plugin)}
            found["held"] = {name: storages(tensors) for name, tensors in parts.items()} | {"gradients": gradients}
            return norm

        plugin.footprint, plugin.step = saying, stepping
        train(plugin, order, *rest)
        looks = []
        for _ in range(5):  # gloo's threads let go of what they have sent a moment later
            plugin.ranks.barrier()
            time.sleep(0.05)
            gc.collect()
            looks.append(storages(of for of in gc.get_objects() if isinstance(of, Tensor) and of.is_floating_point()))
        found["all"] = min(looks)
        (order.folder / f"held-{place.rank}.json").write_text(json.dumps(found))

    def in_turn() -> Iterator[RunOrder]:
        yield from orders
        emulate()
        yield from on_gemini

    experiment.train = measured
    return run_all(place, in_turn())


def storages(tensors: Iterable[Tensor | None]) -> int:
    """The bytes of the memory that these tensors lie in, each piece of memory once and whole."""
    behind = [of.untyped_storage() for of in tensors if of is not None]
    return sum({of.data_ptr(): of.nbytes() for of in behind}.values())


def weights_of(plugin: Any) -> Iterator[Tensor | None]:
    """Of all models; Gemini's parameters are empty, and their chunks are not."""
    for model in plugin.models.values():
        yield from model.model.parameters()
        yield from (shard for chunk in chunks(model) for shard in (chunk.cuda_shard, chunk.cpu_shard))


def chunks(model: Any) -> Any:
    """Gemini's, of a model; of any other none."""
    return model.wrapper.chunk_manager.get_chunks(model.model.parameters()) if hasattr(model, "manager") else ()


def copies_of(plugin: Any) -> list[Tensor | None]:
    """What the optimizer updates and is no weight."""
    if paired := [chunk.paired_chunk for chunk in chunks(plugin.policy)]:
        return [shard for chunk in paired for shard in (chunk.cuda_shard, chunk.cpu_shard)]
    updated = [of for group in plugin.optimizer.optim.param_groups for of in group["params"]]
    weights = {id(of) for of in plugin.policy.model.parameters()}
    return [of for of in updated if id(of) not in weights]


def state_of(plugin: Any) -> list[Tensor]:
    """The optimizer's, but for its counts of steps."""
    states = plugin.optimizer.optim.state.values()
    return [of for state in states for of in state.values() if isinstance(of, Tensor) and of.ndim]


def gradients_of(plugin: Any) -> Iterator[Tensor | None]:
    """Before an update: those of parameters, of ZeRO's stores, and of Gemini's chunks."""
    yield from (parameter.grad for parameter in plugin.policy.model.parameters())
    for store in getattr(plugin.optimizer, "pg_to_grad_store", {}).values():
        yield from (of for group in store._grads_of_params.values() for pieces in group.values() for of in pieces)
    yield from (chunk.grad_chunk.payload for chunk in chunks(plugin.policy))
