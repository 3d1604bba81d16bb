"""Data parallelism with everything split: ColossalAI's GeminiPlugin, ZeRO stage 3 with parts in the host's memory.

Rajbhandari et al. 2020, arXiv 1910.02054; Fang et al. 2021, arXiv 2108.05818. Weights, gradients, float32 weights and
the optimizer's state lie in chunks, of which each rank keeps a range; a chunk of weights is gathered while it is used.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.plugins.base import PLUGINS, MakeOptimizer, Objective, Plugin, PluginConfig, Which
from orpo_exp.plugins.chunks import ChunkedModel, weights_of
from orpo_exp.plugins.colossal import colossalai_imported, complete_gemini, unannounced
from orpo_exp.plugins.memory import Footprint, StateBytes, state_of
from orpo_exp.plugins.pieces import HELD, POLICY, Held, Pieces, load_pieces, save_pieces, write_model
from orpo_exp.plugins.precision import Precision, buffers_kept
from orpo_exp.plugins.processes import Place
from orpo_exp.plugins.rules import WHOLE_TRAINED, Rule
from orpo_exp.plugins.state import load_own, save_own
from orpo_exp.plugins.whole import read_by_main
from orpo_exp.plugins.zero import WHOLE_MOVES
from orpo_exp.schema import ConfigError, setting
from orpo_exp.types import Batch, Builder, LossOutput


class Placement(Enum):
    """static: fixed shares lie in the host's memory. auto: gradients and what is updated do, weights as memory allows,
    after one measured pass."""

    static = "static"
    auto = "auto"


@dataclass
class GeminiConfig(PluginConfig):
    """placement_policy: see Placement. pin_memory: whether the host's part is page-locked, which hastens transfers and
    takes memory for all chunks.

    With static placement, as shares of the weights: shard_param_frac is let go of as soon as it has been used,
    offload_optim_frac updated in the host's memory, offload_param_frac kept there. With auto, as shares of the
    device's memory: warmup_non_model_data_ratio is left for activations in the pass that is measured,
    steady_cuda_cap_ratio used at most afterwards.
    """

    precision: Precision = Precision.bf16_weights
    placement_policy: Placement = Placement.static
    shard_param_frac: float = setting(1.0, ge=0, le=1)
    offload_optim_frac: float = setting(0.0, ge=0, le=1)
    offload_param_frac: float = setting(0.0, ge=0, le=1)
    warmup_non_model_data_ratio: float = setting(0.8, gt=0, lt=1)
    steady_cuda_cap_ratio: float = setting(0.9, gt=0, le=1)
    pin_memory: bool = False

    @property
    def offloads(self) -> bool:
        """Whether something is updated in the host's memory."""
        return self.placement_policy is Placement.auto or self.offload_optim_frac > 0


def only_with(placement: Placement, name: str) -> Rule:
    """That a setting that has a meaning with one placement alone is left at its default with the other."""
    default = getattr(GeminiConfig, name)
    return Rule(
        f"plugin.{name}",
        f"{default}, its default, unless plugin.placement_policy={placement.value}",
        f"Leave it out, or set plugin.placement_policy={placement.value}.",
        lambda f: f.plugin.placement_policy is placement or getattr(f.plugin, name) == default,
    )


RULES = (
    *(only_with(Placement.static, name) for name in ("shard_param_frac", "offload_optim_frac", "offload_param_frac")),
    *(only_with(Placement.auto, name) for name in ("warmup_non_model_data_ratio", "steady_cuda_cap_ratio")),
    Rule(
        "plugin.offload_param_frac",
        "0 unless shard_param_frac and offload_optim_frac are 1",  # ColossalAI would ignore it
        "Set plugin.shard_param_frac=1 and plugin.offload_optim_frac=1.",
        lambda f: f.plugin.offload_param_frac == 0 or f.plugin.shard_param_frac == f.plugin.offload_optim_frac == 1,
    ),
    Rule(
        "optimizer",
        "one that updates each number by itself, wherever it lies, for chunks cut through parameters",
        "Choose optimizer=adamw or optimizer=hybrid_adam.",
        lambda f: f.optimizer.elementwise and f.optimizer.refuses(cut=True, offloaded=f.plugin.offloads) is None,
    ),
    WHOLE_MOVES,
    WHOLE_TRAINED,
)


@PLUGINS.register("gemini")
class Gemini(Plugin):
    """ZeRO stage 3 on GPUs (nccl). Weights are bfloat16 or float16, and so are the gradients that it adds up over
    micro-batches; updates are float32."""

    Config = GeminiConfig
    config: GeminiConfig
    precisions = frozenset({Precision.bf16_weights, Precision.fp16_weights})
    rules = RULES
    objective_everywhere = True
    checkpoint_form = "pieces"
    needs_gpu: ClassVar[bool] = True

    def __init__(self, config: GeminiConfig, place: Place) -> None:
        if self.needs_gpu and not torch.cuda.is_available():
            do = "Choose plugin=zero2, or zero2_offload, which run on CPUs as well."
            raise ConfigError("plugin", "gemini", "on this machine, which has no GPU, any other plugin", do)
        super().__init__(config, place)
        with colossalai_imported():
            from colossalai.booster import Booster
            from colossalai.booster.plugin import GeminiPlugin
        complete_gemini()

        # clipping and the loss scale are this plugin's own: ColossalAI's leave bfloat16 gradients unclipped in the
        # host's memory, and go on adding to those that have overflowed
        self.chunks: Any = GeminiPlugin(
            precision={Precision.bf16_weights: "bf16", Precision.fp16_weights: "fp16"}[config.precision],
            placement_policy=config.placement_policy.value,
            shard_param_frac=config.shard_param_frac,
            offload_optim_frac=config.offload_optim_frac,
            offload_param_frac=config.offload_param_frac,
            warmup_non_model_data_ratio=config.warmup_non_model_data_ratio,
            steady_cuda_cap_ratio=config.steady_cuda_cap_ratio,
            pin_memory=config.pin_memory,
            enable_gradient_accumulation=True,
            # chunks that every rank keeps whole are added up wrongly over micro-batches: there are to be none
            min_chunk_size_m=0,
            # on its other stream, memory is given back that is still being read there
            enable_async_reduce=False,
        )
        self.booster: Any = Booster(plugin=self.chunks)

    @classmethod
    @override
    def of_caller(cls, plugin: Any) -> tuple[PluginConfig, float | None] | None:
        from colossalai.booster.plugin import GeminiPlugin

        if not isinstance(plugin, GeminiPlugin):
            return None
        return cls.Config(precision=Precision.of_weights(plugin.precision)), plugin.optim_kwargs["max_norm"] or None

    @override
    def prepare(self, build: Builder, make_optimizer: MakeOptimizer, max_grad_norm: float | None) -> None:
        built = read_by_main(build, self.ranks)
        weights = weights_of(built.model)
        optimizer = make_optimizer(built.model.parameters())
        complete_gemini(type(optimizer))
        with unannounced(), buffers_kept(built.model):
            model, optimizer, *_ = self.booster.boost(built.model, optimizer)
        self.adopt(model, optimizer, built.finish_logits, max_grad_norm)
        self.policy.fill(weights)

    @override
    def adopt(
        self, model: Any, optimizer: Any, finish_logits: Callable[[Tensor], Tensor], max_grad_norm: float | None
    ) -> None:
        if not model.enable_gradient_accumulation or any(chunk.keep_gathered for chunk in optimizer.chunk16_set):
            allowed = "one made with enable_gradient_accumulation=True, min_chunk_size_m=0"
            raise ConfigError("plugin", "another GeminiPlugin", allowed, "Boost the model by such a plugin.")
        self.wrapper, self.optimizer, self.max_grad_norm = model, optimizer, max_grad_norm
        self.policy = self.models[Which.policy] = ChunkedModel(model, finish_logits, self.ranks)
        optimizer.mix_precision_mixin, optimizer.clipping_flag = self.loss_scale, False
        _divide_in_float32(optimizer.optim)

    @override
    def hold_reference(self, build: Builder) -> None:
        from colossalai.zero import GeminiDDP

        built = read_by_main(build, self.ranks)
        weights = weights_of(built.model)
        # nothing is updated, and auto placement would have to see it train
        other = {"master_weights": False, "placement_policy": "static", "pin_memory": False}
        settings = {**self.chunks.gemini_config, **other}
        with unannounced(), buffers_kept(built.model):
            wrapper = GeminiDDP(built.model, **settings, zero_group=self.chunks.zero_group)
        self.held = self.models[Which.held] = ChunkedModel(wrapper, built.finish_logits, self.ranks)
        self.held.fill(weights)

    @override
    def footprint(self, state_bytes: StateBytes) -> Footprint:
        def size(chunks: Iterable[Any]) -> int:
            return sum(int(chunk.shard_mem) for chunk in chunks)  # these are NumPy's

        return Footprint(
            weights=sum(size(model.chunks) for model in self.models.values() if isinstance(model, ChunkedModel)),
            copies=size(chunk.paired_chunk for chunk in self.policy.chunks),
            gradients=size(self.policy.chunks),  # of the weights' type
            state=state_of((part.tensor for part in self.policy.held()), state_bytes),
        )

    @override
    def load(self, folder: Path, held: bool) -> None:
        load_pieces(Pieces(folder, POLICY), self._updated(), self.optimizer.optim)
        self.policy.follow()
        if held:
            load_pieces(Pieces(folder, HELD), self.held.held(), None)
        load_own(folder, self.ranks, self.loss_scale)

    @override
    def forward_backward(self, micro_batches: Sequence[Batch], objective: Objective) -> list[LossOutput]:
        self.policy.model.train()
        outputs: list[LossOutput] = []
        # Gemini averages over ranks; the objective's shares are to be summed
        factor = self.ranks.replicas * self.loss_scale.scale
        for number, batch in enumerate(micro_batches):
            outputs.append(objective(number, self.policy.logps(batch)))
            with unannounced(), redirect_stdout(None):  # auto placement prints that it has measured
                self.booster.backward(outputs[-1].loss * factor, self.optimizer)
        return outputs

    @override
    def step(self, lr: float) -> float | None:
        squares = sum(float(torch.linalg.vector_norm(of, dtype=torch.float32)) ** 2 for of in self._gradients())
        norm = math.sqrt(self.ranks.total(squares)) / self.loss_scale.scale
        if self.loss_scale.judge(norm, self.max_grad_norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.wrapper.chunk_manager.accumulating_grads = False  # the next gradient begins anew
        return self.loss_scale.told(norm)

    @override
    def save(self, folder: Path, held: bool) -> list[str]:
        files = [save_own(folder, self.ranks, self.loss_scale)]
        files.append(save_pieces(folder, POLICY, self.ranks.rank, self._updated(), self.optimizer.optim))
        if held:
            files.append(save_pieces(folder, HELD, self.ranks.rank, self.held.held(), None))
        return files

    @override
    def save_weights(self, folder: Path) -> None:
        weights = self.policy.whole()
        if self.ranks.is_main:
            self.policy.save_config(folder)
            write_model(folder, weights)
        else:
            deque(weights, maxlen=0)  # sends what the main rank lacks
        self.ranks.barrier()

    def _gradients(self) -> list[Tensor]:
        """This rank's ranges of the gradient, still scaled, without their paddings."""
        return [chunk.grad_chunk.payload[: chunk.get_valid_length()] for chunk in self.policy.chunks]

    def _updated(self) -> list[Held]:
        """What this rank's optimizer updates, by the tensors that it knows: they are empty between two steps."""
        real, known = self.optimizer.id_to_real_params, self.optimizer.id_to_fake_params
        of = {self.wrapper.param2name[real[number]]: tensor for number, tensor in known.items()}
        updated = []
        for part in self.policy.held():
            of[part.name].data = part.tensor
            updated.append(Held(part.name, part.piece, of[part.name]))
        return updated


def _divide_in_float32(optimizer: Optimizer) -> None:
    """Let an optimizer take what Gemini gives it: gradients of the weights' type, and what divides them."""
    update = optimizer.step

    def step(div_scale: float = -1.0) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.grad.float().div_(div_scale if div_scale > 0 else 1.0)
        update()

    optimizer.step = step  # type: ignore[method-assign, assignment]
