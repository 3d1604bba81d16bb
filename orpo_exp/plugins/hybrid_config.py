"""How ranks share one training under hybrid parallelism, and what goes with what."""

from dataclasses import dataclass
from importlib.metadata import version

from orpo_exp.plugins.architectures import ARCHITECTURES, LAYERS, SequenceMode, not_carried, not_divided, size
from orpo_exp.plugins.base import PluginConfig
from orpo_exp.plugins.rules import Facts, Rule, divides
from orpo_exp.plugins.zero import WHOLE_MOVES, cuttable
from orpo_exp.schema import setting


@dataclass
class HybridConfig(PluginConfig):
    """tp_size: ranks that share every matrix. pp_size: stages that share the layers. sp_size: ranks that share the
    positions of every sequence. sp_mode: which these are, and how. zero_stage: how the optimizer is split over the
    replicas (0, 1, 2). cpu_offload: whether its state lies in the host's memory, with ZeRO. layers_per_stage: None
    shares them evenly. bucket_size, overlap: as in zero1, with ZeRO."""

    tp_size: int = setting(1, ge=1)
    pp_size: int = setting(1, ge=1)
    sp_size: int = setting(1, ge=1)
    sp_mode: SequenceMode = SequenceMode.all_to_all
    zero_stage: int = setting(0, ge=0, le=2)
    cpu_offload: bool = False
    layers_per_stage: list[int] | None = None
    bucket_size: int = setting(12, ge=1)
    overlap: bool = True

    @property
    def sequence(self) -> SequenceMode | None:
        """How positions are shared; None where each rank has all of them."""
        return self.sp_mode if self.sp_size > 1 else None

    @property
    def further(self) -> int:
        """How many ranks of their own share the positions, beside those that share the matrices."""
        return 1 if self.sp_mode.of_tensor_ranks else self.sp_size

    @property
    def heads(self) -> int:
        """How many ranks share the heads inside attention."""
        return self.tp_size * self.further

    @property
    def replica(self) -> int:
        """How many ranks form one replica."""
        return self.heads * self.pp_size


def _not_carried(facts: Facts) -> str | None:
    config = facts.plugin
    attention = facts.model_settings.attention.value
    return not_carried(facts.model, attention, config.tp_size, config.pp_size, config.sequence)


RULES = (
    Rule(
        "plugin",
        "a plugin that this version of transformers goes with; hybrid cuts the models of transformers 4.51",
        "Install transformers==4.51.3, or choose plugin=zero2.",
        lambda _: version("transformers").startswith("4.51."),
        lambda _: f"transformers {version('transformers')} is installed",
    ),
    Rule(
        "processes",
        "a multiple of plugin.tp_size * plugin.pp_size, with sp_mode=all_to_all times plugin.sp_size",
        "Set processes to one, or start as many by torchrun or Slurm.",
        lambda f: divides(f.plugin.replica, f.world_size),
    ),
    Rule(
        "plugin.sp_size",
        "with sp_mode=split_gather or ring that of plugin.tp_size, above 1",
        "Set both to the same number, or plugin.sp_mode=all_to_all.",
        lambda f: not f.plugin.sp_mode.of_tensor_ranks or f.plugin.sp_size == f.plugin.tp_size > 1,
    ),
    Rule(
        "plugin.zero_stage",
        "0 with precision fp32 or tf32",
        "Set plugin.zero_stage=0, or plugin.precision=bf16_weights.",
        lambda f: f.plugin.zero_stage == 0 or f.plugin.precision.weights is not None,
    ),
    Rule(
        "plugin.zero_stage",
        "0 or 1 with stages, where a gradient would have to travel with each micro-batch",
        "Set plugin.zero_stage=1, or plugin.pp_size=1.",
        lambda f: f.plugin.zero_stage < 2 or f.plugin.pp_size == 1,
    ),
    Rule(
        "plugin.cpu_offload",
        "true with zero_stage above 0",
        "Set plugin.cpu_offload=false.",
        lambda f: not f.plugin.cpu_offload or f.plugin.zero_stage > 0,
    ),
    Rule(
        "model",
        f"an architecture that ColossalAI cuts: {', '.join(sorted(ARCHITECTURES))}, and of these what it cuts rightly",
        "Choose plugin=zero2, say.",
        lambda f: _not_carried(f) is None,
        lambda f: str(_not_carried(f)),
    ),
    Rule(
        "plugin.tp_size",
        "a divisor of what is cut of the model; with sp_mode=all_to_all, tp_size * sp_size one of its heads",
        "Choose another one, or another plugin.sp_size.",
        lambda f: not_divided(f.model, f.plugin.tp_size, f.plugin.heads) is None,
        lambda f: str(not_divided(f.model, f.plugin.tp_size, f.plugin.heads)),
    ),
    Rule(
        "plugin.tp_size",
        "1 with an adapter, which the layers that ColossalAI puts in for the model's leave out",
        "Set plugin.tp_size=1, or choose plugin=zero2, say.",
        lambda f: f.plugin.tp_size == 1 or not f.adapter.partial,
    ),
    Rule(
        "plugin.pp_size",
        "at most the model's layers",
        "Choose fewer stages.",
        lambda f: f.plugin.pp_size <= (size(f.model, LAYERS) or f.plugin.pp_size),
    ),
    Rule(
        "plugin.layers_per_stage",
        "null, or a number of layers for each of plugin.pp_size stages, from 1, which add up to the model's",
        "Set plugin.layers_per_stage=null.",
        lambda f: (
            f.plugin.layers_per_stage is None
            or (
                len(f.plugin.layers_per_stage) == f.plugin.pp_size
                and min(f.plugin.layers_per_stage, default=0) > 0
                and size(f.model, LAYERS) in (None, sum(f.plugin.layers_per_stage))
            )
        ),
    ),
    cuttable(lambda f: f.plugin.tp_size > 1 or f.plugin.zero_stage > 0, lambda f: f.plugin.cpu_offload),
    WHOLE_MOVES,
)
