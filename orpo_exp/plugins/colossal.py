"""ColossalAI, imported without noise and completed where it is incomplete on a CPU."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
            if not torch.cuda.is_available():
                _complete_cpu_accelerator()
            yield
    finally:
        loud.setLevel(level)


def _complete_cpu_accelerator() -> None:
    """ColossalAI's CPU accelerator raises in places that its own plugins call. With a GPU it chooses CUDA by itself."""
    from colossalai.accelerator import set_accelerator
    from colossalai.accelerator.cpu_accelerator import CpuAccelerator

    class CompletedCpuAccelerator(CpuAccelerator):
        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def synchronize(self, device: Any = None) -> None:
            return None

        def empty_cache(self) -> None:
            return None

    set_accelerator(CompletedCpuAccelerator())
