"""ColossalAI's CPU accelerator, completed: it raises in places that its own plugins call."""

from typing import Any


def use_completed_cpu_accelerator() -> None:
    """Make ColossalAI work on the CPU. Only for machines without a GPU: with one, it chooses CUDA by itself."""
    import torch
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
