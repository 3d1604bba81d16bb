"""Data parallelism with a split optimizer: ColossalAI's LowLevelZeroPlugin, ZeRO stages 1 and 2.

Rajbhandari et al. 2020, arXiv 1910.02054. Each rank holds the whole model, and of the optimizer's state (with stage 2
of the gradients too) its share: parameter by parameter, flattened, an equal range for each rank.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from orpo_exp.plugins.base import PLUGINS, MakeOptimizer, Objective, Plugin, PluginConfig, Which
from orpo_exp.plugins.colossal import colossalai_imported, unannounced
from orpo_exp.plugins.memory import Footprint, Sizes, StateBytes, footprint
from orpo_exp.plugins.pieces import HELD, POLICY, Held, Pieces, load_pieces, master_parts, save_pieces
from orpo_exp.plugins.precision import Precision, squares
from orpo_exp.plugins.processes import Place
from orpo_exp.plugins.rules import Facts, Rule
from orpo_exp.plugins.state import load_own, save_own
from orpo_exp.plugins.whole import Beginning, WholeModel, accumulate, built_once
from orpo_exp.schema import setting
from orpo_exp.types import Batch, Builder, BuiltModel, LossOutput


def cuttable(cut: Callable[[Facts], bool], offloaded: Callable[[Facts], bool]) -> Rule:
    """The rule that the optimizer can update parameters that lie cut, or in the host's memory, where they do."""

    def reason(facts: Facts) -> str | None:
        return facts.optimizer.refuses(cut(facts), offloaded(facts))

    return Rule(
        "optimizer",
        "where parameters or their optimizer's state are cut, one that can do with a part of them",
        "Choose optimizer=adamw, say, or plugin=ddp.",
        lambda facts: reason(facts) is None,
        lambda facts: str(reason(facts)),
    )


# The held model has weights of the policy's type, which small moves would leave where they are.
WHOLE_MOVES = Rule(
    "reference.mix",
    "1 with weights of 16 bits, in which small moves are lost",
    "Set reference.mix=1, or choose plugin.precision=bf16.",
    lambda facts: not facts.plugin.precision.weights or getattr(facts.reference, "mix", 1.0) == 1.0,
)


@dataclass
class ZeroConfig(PluginConfig):
    """bucket_size: millions of gradient numbers that travel together. overlap: whether they do during the backward
    pass; on GPUs alone."""

    bucket_size: int = setting(12, ge=1)
    overlap: bool = True


class Zero(Plugin):
    """ZeRO on CPUs (gloo) and GPUs (nccl). stage: 1 splits the optimizer's state, 2 the gradients as well.
    offload: whether both lie in the host's memory."""

    Config = ZeroConfig
    config: ZeroConfig
    precisions = frozenset(Precision)
    rules = (cuttable(lambda _: True, lambda _: False), WHOLE_MOVES)
    objective_everywhere = True
    checkpoint_form = "pieces"
    stage: ClassVar[int]
    offload: ClassVar[bool] = False

    def __init__(self, config: ZeroConfig, place: Place) -> None:
        super().__init__(config, place)
        with colossalai_imported():
            from colossalai.booster import Booster
            from colossalai.booster.plugin import LowLevelZeroPlugin

        # clipping and the loss scale are this plugin's own: ColossalAI's updates also by what is not finite
        plugin = LowLevelZeroPlugin(
            stage=self.stage,
            precision="fp32",  # which leaves weights and inputs as they are
            reduce_bucket_size_in_m=config.bucket_size,
            overlap_communication=config.overlap,
            cpu_offload=self.offload,
        )
        self.booster: Any = Booster(plugin=plugin)

    @classmethod
    @override
    def of_caller(cls, plugin: Any) -> tuple[PluginConfig, float | None] | None:
        from colossalai.booster.plugin import LowLevelZeroPlugin

        if not isinstance(plugin, LowLevelZeroPlugin) or (plugin.stage, False) != (cls.stage, cls.offload):
            return None  # where the state lies, the optimizer knows that was boosted
        precision = Precision.of_weights(plugin.precision)
        return cls.Config(precision=precision), plugin.zero_optim_kwargs["clip_grad_norm"] or None

    @override
    def prepare(self, build: Builder, make_optimizer: MakeOptimizer, max_grad_norm: float | None) -> None:
        built = built_once(build, self.ranks, self.config.precision.weights)
        optimizer = make_optimizer(built.model.parameters())
        model, optimizer, *_ = self.booster.boost(built.model, optimizer)
        self._take(model, optimizer, built, max_grad_norm)

    @override
    def adopt(
        self, model: Any, optimizer: Any, finish_logits: Callable[[Tensor], Tensor], max_grad_norm: float | None
    ) -> None:
        self._take(model, optimizer, BuiltModel(model.unwrap(), finish_logits), max_grad_norm)

    def _take(self, model: Any, optimizer: Any, built: BuiltModel, max_grad_norm: float | None) -> None:
        self.wrapper, self.optimizer, self.max_grad_norm = model, optimizer, max_grad_norm
        self.policy = WholeModel(built, self.device, self.config.precision.dtype)
        self.models[Which.policy] = self.policy
        optimizer.mixed_precision_mixin = self.loss_scale
        optimizer._compute_grad_norm = lambda **_: 0.0  # of use for its own clipping alone

    @override
    def hold_reference(self, build: Builder) -> None:
        built = built_once(build, self.ranks, self.config.precision.weights)
        self.held = self.models[Which.held] = WholeModel(built, self.device, self.config.precision.dtype)
        self.held.model.requires_grad_(False)

    @override
    def hold_beginning(self) -> None:
        self.held = self.models[Which.held] = Beginning(self.policy)

    @classmethod
    @override
    def expected(cls, config: PluginConfig, world_size: int, sizes: Sizes) -> Footprint:
        def share(size: int) -> int:
            return -(-size // world_size)

        state = None if sizes.state is None else share(sizes.state)
        gradients = sizes.trained if cls.stage == 1 else share(sizes.trained)
        return Footprint(sizes.weights, share(sizes.updated), gradients, state)

    @override
    def footprint(self, state_bytes: StateBytes) -> Footprint:
        copied, ranges = self.optimizer.get_master_to_working_map(), self.ranks.replicas if self.stage == 1 else 1
        return footprint(self.models.values(), self.optimizer, state_bytes, copied, ranges)

    @override
    def load(self, folder: Path, held: bool) -> None:
        pieces = Pieces(folder, POLICY)
        load_pieces(pieces, self._held_pieces(), self.optimizer.optim)
        load_pieces(pieces, self.policy.held, None)
        if held:
            load_pieces(Pieces(folder, HELD), self.held.held, None)
        load_own(folder, self.ranks, self.loss_scale)

    @override
    def forward_backward(self, micro_batches: Sequence[Batch], objective: Objective) -> list[LossOutput]:
        # ZeRO averages over ranks; the objective's shares are to be summed
        factor = self.ranks.replicas * self.loss_scale.scale
        with unannounced():
            return accumulate(
                self.policy,
                self.wrapper,
                micro_batches,
                objective,
                lambda loss: self.booster.backward(loss * factor, self.optimizer),
                # with stage 2 nobody keeps a whole gradient: it travels with each micro-batch
                quiet=nullcontext if self.stage == 2 else self.optimizer.no_sync,
            )

    @override
    def step(self, lr: float) -> float | None:
        norm = math.sqrt(self.ranks.total(squares((grad, 1) for grad in self._gradients()))) / self.loss_scale.scale
        if self.loss_scale.judge(norm, self.max_grad_norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            with unannounced():
                self.optimizer.step()
        self.optimizer.zero_grad()
        return self.loss_scale.told(norm)

    @override
    def save(self, folder: Path, held: bool) -> list[str]:
        files = [save_own(folder, self.ranks, self.loss_scale)]
        files.append(save_pieces(folder, POLICY, self.ranks.rank, self._held_pieces(), self.optimizer.optim))
        if held and self.ranks.is_main:
            files.append(save_pieces(folder, HELD, self.ranks.rank, self.held.held, None))
        return files

    @override
    def save_weights(self, folder: Path) -> None:
        if self.ranks.is_main:
            self.policy.save_pretrained(folder)
        self.ranks.barrier()

    def _gradients(self) -> list[Tensor]:
        """This rank's ranges of the gradient, still scaled."""
        groups = range(self.optimizer.num_param_groups)
        return [grad for group in groups for grad in self.optimizer.get_working_grads_by_group_id(group)]

    def _held_pieces(self) -> list[Held]:
        """This rank's ranges of the weights, float32, as the optimizer updates them."""
        return master_parts(self.policy.held, self.optimizer.get_working_to_master_map(), self.ranks.rank)


@PLUGINS.register("zero1")
class Zero1(Zero):
    """The optimizer's state is split among the ranks."""

    stage = 1


@PLUGINS.register("zero2")
class Zero2(Zero):
    """The optimizer's state and the gradients are split among the ranks; they travel with each micro-batch."""

    stage = 2


@PLUGINS.register("zero2_offload")
class Zero2Offload(Zero2):
    """As zero2, with the optimizer's state, its float32 weights and its update in the host's memory."""

    offload = True
    on_host = frozenset({"copies", "state"})
    rules = (cuttable(lambda _: True, lambda _: True), WHOLE_MOVES)
