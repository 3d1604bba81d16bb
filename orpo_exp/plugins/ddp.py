"""Data parallelism with whole replicas: ColossalAI's TorchDDPPlugin."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from orpo_exp.plugins.base import PLUGINS, MakeOptimizer, Objective, Plugin, PluginConfig, Which
from orpo_exp.plugins.colossal import colossalai_imported
from orpo_exp.plugins.memory import Footprint, Sizes, StateBytes, footprint
from orpo_exp.plugins.processes import Place
from orpo_exp.plugins.whole import Beginning, WholeModel, accumulate, built_once, load_whole, save_whole
from orpo_exp.types import Batch, Builder, BuiltModel, LossOutput


@PLUGINS.register("ddp")
class DDP(Plugin):
    """Each rank holds the whole model; gradients are summed over ranks once per step.

    Runs on CPUs (gloo) and GPUs (nccl). bf16 is autocast: weights, gradients and updates stay float32.
    """

    objective_everywhere = True
    checkpoint_form = "DDP"

    def __init__(self, config: PluginConfig, place: Place) -> None:
        super().__init__(config, place)
        with colossalai_imported():
            from colossalai.booster import Booster
            from colossalai.booster.plugin import TorchDDPPlugin

        self.booster: Any = Booster(plugin=TorchDDPPlugin(broadcast_buffers=False, gradient_as_bucket_view=True))

    @classmethod
    @override
    def of_caller(cls, plugin: Any) -> tuple[PluginConfig, float | None] | None:
        from colossalai.booster.plugin import TorchDDPPlugin

        return (cls.Config(), None) if isinstance(plugin, TorchDDPPlugin) else None

    @override
    def prepare(self, build: Builder, make_optimizer: MakeOptimizer, max_grad_norm: float | None) -> None:
        built = built_once(build, self.ranks)
        optimizer = make_optimizer(built.model.parameters())
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of an argument ColossalAI always gives
            model, optimizer, *_ = self.booster.boost(built.model, optimizer)
        self._take(model, optimizer, built, max_grad_norm)

    @override
    def adopt(
        self, model: Any, optimizer: Any, finish_logits: Callable[[Tensor], Tensor], max_grad_norm: float | None
    ) -> None:
        self._take(model, optimizer, BuiltModel(model.unwrap(), finish_logits), max_grad_norm)

    def _take(self, model: Any, optimizer: Any, built: BuiltModel, max_grad_norm: float | None) -> None:
        # a rank that is alone has nobody to tell of its gradients, and no need for the memory in which they travel
        self.wrapper, self.optimizer = model if self.ranks.world_size > 1 else model.unwrap(), optimizer
        self.policy = WholeModel(built, self.device, self.config.precision.dtype)
        self.models[Which.policy] = self.policy
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self._settle_buckets()

    @override
    def hold_reference(self, build: Builder) -> None:
        held = WholeModel(built_once(build, self.ranks), self.device, self.config.precision.dtype)
        held.model.requires_grad_(False)
        self.models[Which.held] = held

    @override
    def hold_beginning(self) -> None:
        self.models[Which.held] = Beginning(self.policy)

    @classmethod
    @override
    def expected(cls, config: PluginConfig, world_size: int, sizes: Sizes) -> Footprint:
        return Footprint(sizes.weights, 0, sizes.trained, sizes.state)

    @override
    def footprint(self, state_bytes: StateBytes) -> Footprint:
        return footprint(self.models.values(), self.optimizer, state_bytes)

    @override
    def load(self, folder: Path, held: bool) -> None:
        load_whole(folder, self.ranks, self.policy, self.optimizer.optim, self._held(held), self.loss_scale)

    @override
    def forward_backward(self, micro_batches: Sequence[Batch], objective: Objective) -> list[LossOutput]:
        def quiet() -> AbstractContextManager[object]:
            return self.booster.no_sync(self.wrapper, self.optimizer) if self.ranks.world_size > 1 else nullcontext()

        # DDP averages over ranks; the objective's shares are to be summed
        factor = self.ranks.replicas * self.loss_scale.scale
        return accumulate(
            self.policy,
            self.wrapper,
            micro_batches,
            objective,
            lambda loss: self.booster.backward(loss * factor, self.optimizer),
            quiet=quiet,
        )

    @override
    def step(self, lr: float) -> float | None:
        parameters = list(self.policy.model.parameters())
        if self.loss_scale.moves:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self.loss_scale.scale)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        if self.loss_scale.judge(norm, None):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        return self.loss_scale.told(norm)

    @override
    def save(self, folder: Path, held: bool) -> list[str]:
        return save_whole(folder, self.ranks, self.policy, self.optimizer.optim, self._held(held), self.loss_scale)

    @override
    def save_weights(self, folder: Path) -> None:
        if self.ranks.is_main:
            self.policy.save_pretrained(folder)
        self.ranks.barrier()

    def _held(self, wanted: bool) -> WholeModel | None:
        held = self.models[Which.held] if wanted else None
        assert held is None or isinstance(held, WholeModel)
        return held

    def _settle_buckets(self) -> None:
        """Run one backward pass whose gradient is zero.

        DDP lays its gradients out anew after the first one, and with three ranks or more the layout decides the order
        in which they are added: without this, the first step of a resumed run would differ in its last bits.
        """
        if self.ranks.world_size > 1:
            ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
            with self.policy.autocast():
                nothing = self.wrapper(input_ids=ids, use_cache=False).logits.float().sum() * 0.0
            self.booster.backward(nothing, self.optimizer)
            self.optimizer.zero_grad()
