"""Tensor, pipeline, sequence and data parallelism together: ColossalAI's HybridParallelPlugin."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from orpo_exp.plugins.architectures import SequenceMode
from orpo_exp.plugins.base import PLUGINS, MakeOptimizer, Objective, Plugin, PluginConfig, Which
from orpo_exp.plugins.colossal import colossalai_imported, complete_end, complete_ring, unannounced
from orpo_exp.plugins.cutting import sharded
from orpo_exp.plugins.hybrid_config import RULES, HybridConfig
from orpo_exp.plugins.memory import Footprint, StateBytes, footprint
from orpo_exp.plugins.pieces import HELD, POLICY, Held, Pieces, load_pieces, master_parts, save_pieces, write_model
from orpo_exp.plugins.precision import Precision, squares
from orpo_exp.plugins.processes import Place
from orpo_exp.plugins.split import SplitBeginning, SplitModel
from orpo_exp.plugins.state import load_own, save_own
from orpo_exp.schema import ConfigError
from orpo_exp.types import Batch, Builder, BuiltModel, LossOutput


@PLUGINS.register("hybrid")
class Hybrid(Plugin):
    """A replica is tp_size * pp_size ranks; the others are further replicas. CPUs (gloo) and GPUs (nccl)."""

    Config = HybridConfig
    config: HybridConfig
    precisions = frozenset({Precision.fp32, Precision.tf32, Precision.bf16_weights, Precision.fp16_weights})
    rules = RULES
    checkpoint_form = "pieces"

    def __init__(self, config: HybridConfig, place: Place) -> None:
        super().__init__(config, place)
        with colossalai_imported():
            from colossalai.booster import Booster
            from colossalai.booster.plugin import HybridParallelPlugin

        complete_ring()
        complete_end(HybridParallelPlugin)
        names = {torch.bfloat16: "bf16", torch.float16: "fp16"}
        # clipping and the loss scale are this plugin's own: ColossalAI's updates also by what is not finite
        self.split: Any = HybridParallelPlugin(
            tp_size=config.tp_size,
            pp_size=config.pp_size,
            sp_size=config.further,
            enable_sequence_parallelism=config.sequence is not None,
            sequence_parallelism_mode=config.sequence.value if config.sequence else None,
            parallel_output=config.sequence is None,  # the states before the head are wanted of all positions
            precision=names.get(config.precision.weights or torch.float32, "fp32"),
            zero_stage=config.zero_stage,
            cpu_offload=config.cpu_offload,
            num_layers_per_stage=config.layers_per_stage,
            num_microbatches=1,  # the layout says how many: pipeline.py
            enable_metadata_cache=False,
            make_vocab_size_divisible_by=1,
            zero_bucket_size_in_m=config.bucket_size,
            overlap_communication=config.overlap,
        )
        self.booster: Any = Booster(plugin=self.split)
        self.objective_everywhere = config.pp_size == 1  # else the last stage alone calls it

    @classmethod
    @override
    def replica_of(cls, config: PluginConfig, world_size: int) -> list[int]:
        assert isinstance(config, HybridConfig)
        return [rank // config.replica for rank in range(world_size)]

    @classmethod
    @override
    def of_caller(cls, plugin: Any) -> tuple[PluginConfig, float | None] | None:
        from colossalai.booster.plugin import HybridParallelPlugin

        if not isinstance(plugin, HybridParallelPlugin):
            return None
        if plugin.dp_axis != 0:
            do = "Make it so: a replica's ranks follow one another."
            raise ConfigError("plugin", "dp_outside=False", "HybridParallelPlugin(dp_outside=True), its default", do)
        config = cls.Config(
            precision=Precision.of_weights(plugin.precision),
            tp_size=plugin.tp_size,
            pp_size=plugin.pp_size,
            zero_stage=plugin.zero_stage,
        )
        if plugin.enable_sequence_parallelism:
            config.sp_size = plugin.shard_config.sequence_parallel_size
            config.sp_mode = SequenceMode(plugin.sequence_parallelism_mode)
        return config, plugin.max_norm or None

    @override
    def prepare(self, build: Builder, make_optimizer: MakeOptimizer, max_grad_norm: float | None) -> None:
        wrapper, built = sharded(build, self.ranks, self.split)
        optimizer = make_optimizer(wrapper.unwrap().parameters())
        # ColossalAI's ZeRO asks the first matrix that it is to update for its type
        if self.config.zero_stage and not self.ranks.everywhere(bool(optimizer.param_groups[0]["params"])):
            allowed = "0 where an adapter has no matrix on some stage of the pipeline"
            do = "Set plugin.zero_stage=0, or name further modules in adapter.targets."
            raise ConfigError("plugin.zero_stage", self.config.zero_stage, allowed, do)
        with unannounced():
            wrapper, optimizer, *_ = self.booster.boost(wrapper, optimizer)
        self._take(wrapper, optimizer, built, max_grad_norm)
        self.build: Builder | None = build

    @override
    def adopt(
        self, model: Any, optimizer: Any, finish_logits: Callable[[Tensor], Tensor], max_grad_norm: float | None
    ) -> None:
        self._take(model, optimizer, BuiltModel(model.unwrap(), finish_logits), max_grad_norm)
        self.build = None

    def _take(self, model: Any, optimizer: Any, built: BuiltModel, max_grad_norm: float | None) -> None:
        self.wrapper, self.optimizer, self.max_grad_norm = model, optimizer, max_grad_norm
        self.policy = SplitModel(model, built, self.ranks, self.split)
        self.models[Which.policy] = self.policy
        tied = [of for stages in model.shared_params for of in stages.values()]
        self.tied_trained = any(of.requires_grad for of in tied)
        if hasattr(optimizer, "mixed_precision"):
            optimizer.mixed_precision = self.loss_scale
        else:
            optimizer.mixed_precision_mixin = self.loss_scale
        optimizer._compute_grad_norm = lambda **_: 0.0  # of use for its own clipping alone
        self._tell_split()

    @override
    def hold_reference(self, build: Builder) -> None:
        self.held = self.models[Which.held] = SplitModel(
            *sharded(build, self.ranks, self.split), self.ranks, self.split
        )
        self.held.model.requires_grad_(False)

    @override
    def hold_beginning(self) -> None:
        self.held = self.models[Which.held] = SplitBeginning(self.policy)

    @override
    def footprint(self, state_bytes: StateBytes) -> Footprint:
        copied = self.optimizer.get_master_to_working_map()
        ranges = dist.get_world_size(self.split.mixed_dp_group) if self.config.zero_stage == 1 else 1
        return footprint(self.models.values(), self.optimizer, state_bytes, copied, ranges)

    @override
    def load(self, folder: Path, held: bool) -> None:
        pieces = Pieces(folder, POLICY)
        load_pieces(pieces, self._updated(), self.optimizer.optim)
        load_pieces(pieces, self.policy.held, None)
        if held:
            load_pieces(Pieces(folder, HELD), self.held.held, None)
        load_own(folder, self.ranks, self.loss_scale)

    @override
    def forward_backward(self, micro_batches: Sequence[Batch], objective: Objective) -> list[LossOutput]:
        self.policy.model.train()
        outputs: list[LossOutput] = []
        # gradients are averaged over replicas; the objective's shares are to be summed
        factor = self.ranks.replicas * self.loss_scale.scale

        def loss(number: int, hidden: Tensor) -> Tensor:
            outputs.append(objective(number, self.policy.logps(micro_batches[number], hidden)))
            return outputs[-1].loss * factor

        stage = self.config.zero_stage
        # with stage 2 nobody keeps a whole gradient: it travels with each micro-batch
        quiet = [self.wrapper.no_sync, getattr(self.optimizer, "no_sync", nullcontext), nullcontext][stage]
        with unannounced():
            with quiet():
                self.policy.passes([batch.to_model(self.device) for batch in micro_batches], loss, self.optimizer)
            if self.tied_trained:
                self.wrapper.sync_shared_params()
            if stage < 2:
                self.wrapper.sync_sp_grads()
                (self.optimizer if stage else self.wrapper).sync_dp_grads()
        return self.ranks.hand_out(outputs if self.policy.where.speaks else None)

    @override
    def step(self, lr: float) -> float | None:
        norm = math.sqrt(self.ranks.total(self._squares())) / self.loss_scale.scale
        if self.loss_scale.judge(norm, self.max_grad_norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            if self.optimizer.get_working_to_master_map() is None:  # then ColossalAI leaves gradients as they are
                for parameter in self.policy.model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.div_(self.loss_scale.get_grad_div_scale())
            with unannounced():
                self.optimizer.step()
        self.optimizer.zero_grad()
        return self.loss_scale.told(norm)

    @override
    def save(self, folder: Path, held: bool) -> list[str]:
        files = [save_own(folder, self.ranks, self.loss_scale)]
        files.append(save_pieces(folder, POLICY, self.ranks.rank, self._updated(), self.optimizer.optim))
        if held:
            files.append(save_pieces(folder, HELD, self.ranks.rank, self.held.held, None))
        return files

    @override
    def save_weights(self, folder: Path) -> None:
        weights = self.policy.whole()
        if not self.ranks.is_main:
            deque(weights, maxlen=0)  # sends what the main rank lacks
        elif self.build is None or self.policy.all_trained:
            self.policy.save_config(folder)
            write_model(folder, weights)
        else:  # one in which the parts of all stages are together, as an adapter is saved
            built = self.build.empty()
            for name, whole in weights:
                built.model.get_parameter(name).data = whole
            built.save(built.model, folder)
        self.ranks.barrier()

    def _tell_split(self) -> None:
        """ColossalAI's distributed optimizers ask what they update how it is split; float32 copies do not say it."""
        from colossalai.interface.optimizer import DistributedOptim

        optimizer, weights = self.optimizer.optim, self.optimizer.get_master_to_working_map() or {}
        if not isinstance(optimizer, DistributedOptim):
            return
        for group in optimizer.param_groups:
            for master in group["params"]:
                if (layout := getattr(weights.get(id(master)), "dist_layout", None)) is not None:
                    master.dist_layout = layout
        ranges = self.config.zero_stage > 0 and self.split.dp_size > 1
        optimizer.setup_distributed(self.split.tp_group, self.split.dp_group, weights if ranges else {}, is_zero=ranges)

    def _updated(self) -> list[Held]:
        """What this rank's optimizer updates: the weights, or float32 copies of them or of a range of them."""
        masters = self.optimizer.get_working_to_master_map()
        if masters is None:
            return self.policy.held
        rank = dist.get_rank(self.split.mixed_dp_group) if self.config.zero_stage else 0
        return master_parts(self.policy.held, masters, rank)

    def _squares(self) -> float:
        """This rank's part of the sum of all squares of the gradient, still scaled: what several ranks have counts
        once."""
        from colossalai.tensor.d_tensor import is_distributed_tensor

        tied = {id(of): len(stages) for stages in self.wrapper.shared_params for of in stages.values()}
        parts = []
        for parameter in self.policy.model.parameters():
            grad = parameter.grad
            if self.config.zero_stage and parameter.requires_grad:
                grad = self.optimizer.get_working_grad_by_param_id(id(parameter))
            if grad is not None:
                copies = 1 if is_distributed_tensor(parameter) else dist.get_world_size(self.split.tp_group)
                parts.append((grad, copies * tied.get(id(parameter), 1)))
        replicas = 1 if self.config.zero_stage else dist.get_world_size(self.split.mixed_dp_group)
        return squares(parts) / replicas
