"""ColossalAI's Adam kernels, in C++ and CUDA: they are compiled when they are first used."""

import contextlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import Optimizer

log = logging.getLogger(__name__)


def lacking_compiler() -> str | None:
    """None, or what this machine lacks to compile C++."""
    tools = ("ninja", os.environ.get("CXX", "c++"))
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return f"{' and '.join(missing)} to compile its kernel at first use" if missing else None


def lacking_cuda() -> str | None:
    """None, or what this machine lacks to compile CUDA and to run it."""
    if not torch.cuda.is_available():
        return "a GPU"
    from torch.utils.cpp_extension import CUDA_HOME

    toolkit = f"the toolkit of CUDA {torch.version.cuda} (nvcc, CUDA_HOME) to compile its kernel at first use"
    return toolkit if CUDA_HOME is None else lacking_compiler()


@contextlib.contextmanager
def loading_kernels() -> Iterator[None]:
    """Make an optimizer with kernels inside this block."""
    if lacking_cuda() is not None:
        _complete_cpu_kernel()
    log.info("loading ColossalAI's Adam kernels; when they are first used they are compiled, which takes a minute")
    # ColossalAI counts by it what might go to a disk
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        yield
    log.debug("%s", said.getvalue())


def resumable(optimizer: Optimizer) -> Optimizer:
    """The same optimizer, its CPU kernel made anew for each call: so it computes its powers of beta from the number of
    the step, as a resumed run's does. One that is kept multiplies them on, which is rounded otherwise."""
    optimizer.cpu_adam_op = _Anew(type(optimizer.cpu_adam_op))  # type: ignore[attr-defined]
    return optimizer


class _Anew:
    """Has a kernel's one method; what the kernel is made with is given again at each call."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def step(self, step: int, lr: float, beta1: float, beta2: float, eps: float, decay: float, *rest: Any) -> None:
        self.kernel(lr, beta1, beta2, eps, decay, True).step(step, lr, beta1, beta2, eps, decay, *rest)


def _complete_cpu_kernel() -> None:
    """ColossalAI's CPU kernel for x86 includes CUDA's headers, for a type alone, and so asks for a GPU and a toolkit
    (kernel/extensions/pybind/cpu_adam/cpu_adam_x86.py). The one for ARM is plain C++ where it is not ARM."""
    from colossalai.kernel.extensions import CpuAdamArmExtension
    from colossalai.kernel.kernel_loader import CPUAdamLoader

    class PlainKernel(CpuAdamArmExtension):
        def is_available(self) -> bool:
            return True

        def assert_compatible(self) -> None:
            return None

    CPUAdamLoader.REGISTRY = [PlainKernel]
