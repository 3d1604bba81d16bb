"""ColossalAI's Gemini on a CPU, for tests: all of its code runs, but its GPU is a label.

What it would keep on the GPU lies in the host's memory as `cuda_shard`, apart from what it keeps there by intent. What
this cannot show: streams, pinned memory, nccl, kernels, and how much memory a GPU has.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from orpo_exp.plugins import Place
from orpo_exp.plugins.colossal import colossalai_imported
from orpo_exp.runs.order import RunOrder


class _GPU:
    """What Gemini compares devices with."""

    type = "cuda"

    def __eq__(self, other: object) -> bool:
        return True


def _gpu(device: Any) -> Any:
    return _GPU() if getattr(device, "index", 0) == 0 else device


def emulate(patch: Callable[[Any, str, Any], None] = setattr, room: int = 10**9) -> None:
    """Let the plugin run here. patch: as setattr. room: of the GPU, in bytes, for placement auto."""
    with colossalai_imported():
        from colossalai.accelerator import get_accelerator
        from colossalai.legacy.utils import memory
        from colossalai.zero.gemini.chunk import Chunk, ChunkManager
        from colossalai.zero.gemini.memory_tracer import memstats_collector

        from orpo_exp.plugins.gemini import Gemini

    close, move_shard, move = Chunk.close_chunk, Chunk.shard_move, ChunkManager.move_chunk

    def close_chunk(self: Any) -> None:
        self.shard_device = _gpu(self.shard_device)
        close(self)

    class Monitor:
        def start(self) -> None:
            pass

        def finish(self) -> int:
            return 84 * room // 100

    patch(Gemini, "needs_gpu", False)
    patch(type(get_accelerator()), "get_current_device", lambda self: torch.device("cpu", 0))
    patch(get_accelerator(), "_name", "cuda")
    patch(Chunk, "close_chunk", close_chunk)
    patch(Chunk, "shard_move", lambda self, to, *args, **more: move_shard(self, _gpu(to), *args, **more))
    patch(ChunkManager, "move_chunk", lambda self, chunk, to, *args, **more: move(self, chunk, _gpu(to), *args, **more))
    patch(memory, "colo_device_memory_capacity", lambda device: room)
    patch(memstats_collector, "SyncCudaMemoryMonitor", Monitor)


def run_all_emulated(place: Place, orders: Sequence[RunOrder], again: Sequence[tuple[RunOrder, int]] = ()) -> int:
    """support.run_all, with Gemini on the CPU."""
    from support import run_all

    emulate()
    return run_all(place, orders, again)
