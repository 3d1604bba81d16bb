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
        # the warnings are about optional packages that nothing here uses
        with warnings.catch_warnings(action="ignore"), _nothing_compiled():
            _complete_distributed()
            if not torch.cuda.is_available():
                _complete_cpu_accelerator()
                _complete_zero()
            yield
    finally:
        loud.setLevel(level)


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """bitsandbytes marks what it has for devices without kernels of its own to be compiled when it is first called
    (backends/default/ops.py); to be marked is enough for torch's compiler to be imported, a sixth of a run's start."""
    compiled = torch.compile
    torch.compile = lambda model=None, **_: model or (lambda marked: marked)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiled


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
    """Its ZeRO optimizer asserts that there is a GPU, though nothing that it does needs one but the streams in which
    gradients travel meanwhile, where it is asked for them (zero/low_level/low_level_optim.py)."""
    from colossalai.zero.low_level import LowLevelZeroOptimizer

    LowLevelZeroOptimizer._sanity_checks = lambda self: None
    LowLevelZeroOptimizer._overlap_communication = property(lambda self: False, lambda self, asked: None)


def complete_gemini(*optimizers: type) -> None:
    """Its chunks are hashed by their addresses, so that another process would offload others of them; its optimizer
    takes but classes that it knows, though nothing except `step(div_scale)` is asked of them; its model fails in its
    destructor when the interpreter ends (all in zero/gemini/)."""
    from colossalai.zero.gemini import GeminiDDP, gemini_optimizer
    from colossalai.zero.gemini.chunk import Chunk

    Chunk.__hash__ = lambda chunk: chunk.count_id
    gemini_optimizer._AVAIL_OPTIM_LIST.update(optimizers)
    GeminiDDP.__del__ = lambda model: None


def complete_sequence(model: torch.nn.Module) -> None:
    """Where tensor ranks share positions, each has of a bias behind a matrix cut by rows the gradient of its own
    positions; of norms alone it says so (shardformer/layer/linear.py)."""
    from colossalai.shardformer.layer import Linear1D_Row
    from colossalai.shardformer.layer.utils import SeqParallelUtils, is_share_sp_tp

    for module in model.modules():
        if isinstance(module, Linear1D_Row) and is_share_sp_tp(module.seq_parallel_mode) and module.bias is not None:
            SeqParallelUtils.marked_as_sp_partial_derived_param(module.bias)


def complete_end(plugin: type) -> None:
    """HybridParallelPlugin fails in its destructor when the interpreter ends: what it asks then has gone
    (cluster/process_group_mesh.py)."""
    plugin.__del__ = lambda self: None  # type: ignore[attr-defined]


def policy_without_padding(model: torch.nn.Module) -> Any:
    """How a model is cut whose matrices no ranks share. Its policies put layers with a padded vocabulary in place of
    head and embeddings, though nothing is to pad, and fail where peft has wrapped those (shardformer/policies/)."""
    from colossalai.shardformer.layer.parallel_module import PaddingParallelModule
    from colossalai.shardformer.policies.auto_policy import get_autopolicy

    policy = get_autopolicy(model)
    whole = policy.module_policy

    def module_policy() -> Any:
        described = whole()
        for module in described.values():
            replaced = module.sub_module_replacement or []
            kept = [of for of in replaced if not issubclass(of.target_module, PaddingParallelModule)]
            module.sub_module_replacement = kept
        return described

    policy.module_policy = module_policy
    return policy


def complete_ring() -> None:
    """Its ring of tensor ranks keeps for the backward pass, in place of the last part that came, the one that was sent:
    the gradients of the weights would be those of other inputs (shardformer/layer/_operation.py)."""
    from colossalai.shardformer.layer import _operation

    whole = _operation._ring_as_gather
    if whole.__module__ == __name__:
        return

    def as_gather(func: Any, input_to_gather: Any, input_local: Any, process_group: Any, gather_dim: int = 1) -> Any:
        own, ranks = torch.distributed.get_rank(process_group), torch.distributed.get_world_size(process_group)
        came: list[dict[str, torch.Tensor]] = []  # in the order of the ranks, from this one on

        def noted(**inputs: Any) -> Any:
            came.append({name: inputs[name].clone() for name in input_to_gather})
            return func(**inputs)

        output, _ = whole(noted, input_to_gather, input_local, process_group, gather_dim)
        by_rank = came[ranks - own :] + came[: ranks - own]
        return output, {name: torch.cat([part[name] for part in by_rank], gather_dim) for name in input_to_gather}

    _operation._ring_as_gather = as_gather
