"""ColossalAI 0.5, imported without noise and completed where it is incomplete on a CPU or on a newer torch.

Each completion names the fault that it mends; it can go when that has gone.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def colossalai_imported() -> Iterator[None]:
    """Import from ColossalAI inside this block; on a machine without a GPU it then works on the CPU."""
    loud = logging.getLogger("bitsandbytes")  # comes with ColossalAI and warns of kernels that nothing here uses
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):  # of optional packages that nothing here uses
            _complete_distributed()
            if not torch.cuda.is_available():
                _complete_cpu_accelerator()
                _complete_zero()
            yield
    finally:
        loud.setLevel(level)


@contextmanager
def unannounced() -> Iterator[None]:
    """Without the warnings of torch about functions and classes that ColossalAI calls by their former names."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        warnings.filterwarnings("ignore", "TypedStorage")
        yield


def _complete_distributed() -> None:
    """Its pipelines ask for the backend of another vendor's devices, which torch no longer names (pipeline/p2p.py)."""
    import torch.distributed as dist

    if not hasattr(dist, "is_hccl_available"):
        dist.is_hccl_available = lambda: False  # type: ignore[attr-defined]
    if not hasattr(dist.Backend, "HCCL"):
        dist.Backend.HCCL = "hccl"  # type: ignore[attr-defined]


def _complete_cpu_accelerator() -> None:
    """Its CPU accelerator raises, or wants another argument, in places that its own plugins call. With a GPU it chooses
    CUDA by itself."""
    from colossalai.accelerator import get_accelerator, set_accelerator
    from colossalai.accelerator.cpu_accelerator import CpuAccelerator

    class CompletedCpuAccelerator(CpuAccelerator):
        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def get_rng_state(self, device: Any = None) -> torch.Tensor:
            return torch.get_rng_state()

        def synchronize(self, device: Any = None) -> None:
            return None

        def empty_cache(self) -> None:
            return None

        def current_device(self) -> int:
            return 0

        def device_count(self) -> int:
            return 1

        # a CPU has one stream: work is done when the call returns
        def Stream(self, *args: Any, **kwargs: Any) -> None:
            return None

        def current_stream(self, device: Any = None) -> None:
            return None

        def stream(self, stream: Any) -> Any:
            return nullcontext()

    if type(get_accelerator()).__name__ != CompletedCpuAccelerator.__name__:
        set_accelerator(CompletedCpuAccelerator())
    # stages of GPT-J and OPT choose a CUDA device, wherever they are (shardformer/modeling/gptj.py, opt.py)
    torch.cuda.set_device = lambda device: None


def _complete_zero() -> None:
    """Its ZeRO optimizer asserts that there is a GPU, though nothing that it does needs one
    (zero/low_level/low_level_optim.py)."""
    from colossalai.zero.low_level import LowLevelZeroOptimizer

    LowLevelZeroOptimizer._sanity_checks = lambda self: None


def complete_gemini(*optimizers: type) -> None:
    """Its chunks are hashed by their addresses, so that another process would offload others of them; its optimizer
    takes but classes that it knows, though nothing except `step(div_scale)` is asked of them; its model fails in its
    destructor when the interpreter ends (all in zero/gemini/)."""
    from colossalai.zero.gemini import GeminiDDP, gemini_optimizer
    from colossalai.zero.gemini.chunk import Chunk

    Chunk.__hash__ = lambda chunk: chunk.count_id
    gemini_optimizer._AVAIL_OPTIM_LIST.update(optimizers)
    GeminiDDP.__del__ = lambda model: None
