"""How a causal LM is cut over the ranks of its replica, and what of its weights each of them has then."""

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orpo_exp.plugins.colossal import colossalai_imported, complete_sequence, policy_without_padding
from orpo_exp.plugins.pieces import Held, Piece
from orpo_exp.plugins.precision import buffers_kept
from orpo_exp.plugins.ranks import Ranks
from orpo_exp.plugins.whole import read_by_main
from orpo_exp.types import Builder, BuiltModel

NAME = "whole_name"  # of a parameter, before a model was cut


def sharded(build: Builder, ranks: Ranks, split: Any) -> tuple[Any, BuiltModel]:
    """The model, cut, on this rank's device, and what it was made of.

    The main rank alone reads the weights; the others cut an empty model, and each takes its part of every parameter
    that the main one sends. Without torch's DDP, which would hold the gradients twice: they travel after the last
    micro-batch.
    """
    with colossalai_imported():
        from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule

    built = read_by_main(build, ranks)
    model = built.model
    sources: dict[str, Tensor] = {}  # cutting replaces them
    for name, parameter in model.named_parameters():
        sources[name] = parameter.data
        setattr(parameter, NAME, name)
    with buffers_kept(model), redirect_stdout(StringIO()):  # one of its policies prints
        wrapper = HybridParallelModule(
            model,
            precision=split.precision,
            shard_config=split.shard_config,
            dp_group=split.mixed_dp_group,
            tp_group=split.tp_group,
            sp_group=split.sp_group,
            use_ddp=False,
            ddp_config={},
            custom_policy=policy_without_padding(model) if split.tp_size == 1 else None,
        )
    complete_sequence(wrapper.unwrap())
    parts = {part.name: part for part in held_parts(wrapper, split)}
    for name in list(sources):
        source = sources.pop(name)
        whole = source.to(ranks.device) if ranks.is_main else torch.empty_like(source, device=ranks.device)
        dist.broadcast(whole, 0)
        if part := parts.get(name):
            part.tensor.data.view(-1)[: part.piece.numel].copy_(part.piece.cut(whole))
    return wrapper, built


def held_parts(wrapper: Any, split: Any) -> list[Held]:
    """What this rank has of a sharded model's weights. Tied weights have one name: that of the embeddings, or, inside
    what peft has put there, the one they had before they were cut."""
    from colossalai.tensor.d_tensor import get_shard_dim_1d, is_distributed_tensor

    model, stage = wrapper.unwrap(), split.stage_manager.stage if split.stage_manager else 0
    rank = dist.get_rank(split.tp_group)
    tied = [of[stage] for of in wrapper.shared_params if stage in of]
    embeddings = model.get_input_embeddings()  # without a tensor where another stage has it
    held: dict[str, Held] = {}
    for prefix, module in model.named_modules():
        for of, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{of}" if prefix else of
            if hasattr(parameter, NAME):
                name = getattr(parameter, NAME)
            elif any(parameter is other for other in tied) or parameter is embeddings.weight:
                name = next(f"{p}.{of}" for p, other in model.named_modules() if other is embeddings)
            shape = list(parameter.shape)
            if is_distributed_tensor(parameter):
                shape = list(parameter.dist_layout.global_shape)
            if hasattr(module, "old_num_embeddings"):  # a vocabulary that was padded for the ranks to share
                shape[0] = module.old_num_embeddings
            piece = Piece.whole(shape)
            if is_distributed_tensor(parameter):
                dim = get_shard_dim_1d(parameter)
                here = parameter.shape[dim]
                piece = Piece.block(shape, dim, rank * here, (rank + 1) * here)
            held.setdefault(name, Held(name, piece, parameter))
    return list(held.values())
