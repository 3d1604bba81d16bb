"""What a plugin is: how processes share one training, and how a forward, a backward and an update are run."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.plugins.memory import Footprint, Sizes, StateBytes
from orpo_exp.plugins.precision import LossScale, Precision
from orpo_exp.plugins.processes import Place
from orpo_exp.plugins.ranks import Ranks
from orpo_exp.plugins.rng import seed_rng
from orpo_exp.plugins.rules import Facts, Rule
from orpo_exp.registry import Registry
from orpo_exp.schema import ConfigError, Settings
from orpo_exp.types import Batch, Builder, LossOutput, PairLogps

# Tokens of a micro-batch by the kind of device, about as many as are fast: on a CPU what its caches hold, on a GPU what
# keeps its many cores at work.
MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}

# (number of the micro-batch, its log-probabilities with gradient) -> its output, whose loss is the share to
# back-propagate. The shares of all micro-batches on all replicas add up to the loss of the global batch.
Objective = Callable[[int, PairLogps], LossOutput]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class Which(Enum):
    """The model that scores: the one that is trained, or the one held beside it."""

    policy = "policy"
    held = "held"


class Scorer(Protocol):
    """A model as a plugin has it, whole or in parts: where the hidden states are found is known here alone."""

    def describe(self) -> str:
        """For people: class and number of parameters."""

    def save_config(self, folder: Path) -> None:
        """Write config.json in Hugging Face's form."""

    def digest(self) -> str:
        """A hexadecimal hash of the weights, the same on all ranks."""

    def score(self, micro_batches: Sequence[Batch]) -> PairLogps:
        """Log-probabilities of this replica's pairs without gradient, micro-batch after micro-batch, on every rank."""

    def generate(self, prompts: Sequence[Tensor], max_new_tokens: int, eos: int) -> list[list[int]]:
        """Greedy continuations of prompts given as 1-D ids, each up to `eos` and without it."""

    def move_towards(self, other: Any, mix: float) -> None:
        """weights = mix * other's + (1 - mix) * own."""


@dataclass
class PluginConfig(Settings):
    """Settings every plugin has. Of a plugin's settings the precision alone belongs to a run's identity: how work is
    split among ranks changes no number beyond rounding."""

    precision: Precision = Precision.fp32

    @classmethod
    @override
    def numbers_depend_on(cls, field: "dataclasses.Field[Any]") -> bool:
        return field.name == "precision"


class Plugin(ABC):
    """Processes, devices, precision, sharding, accumulation and clipping are known here alone.

    The methods stand in the order in which a run uses them. From `prepare` on, every rank calls the same ones in the
    same order, with equally many micro-batches. whole.py and state.py hold parts to build a plugin from.

    ranks: what the ranks say to each other. device: this rank's. models: filled by `prepare` and `hold_reference`.
    loss_scale: what `forward_backward` multiplies the losses by and `step` divides the gradient by.
    precisions: those that it can run. rules: what else it wants, checked before anything is loaded.
    objective_everywhere: whether every rank calls the objective, and so may talk to the others in it.
    on_host: the parts of its footprint that lie in the host's memory where the model is on a GPU.
    checkpoint_form: plugins of one form can load each other's checkpoints; others are refused.
    """

    Config: ClassVar[type[PluginConfig]] = PluginConfig
    precisions: ClassVar[frozenset[Precision]] = frozenset(
        {Precision.fp32, Precision.tf32, Precision.bf16, Precision.fp16}
    )
    rules: ClassVar[tuple[Rule, ...]] = ()
    objective_everywhere: bool = False
    on_host: ClassVar[frozenset[str]] = frozenset()
    checkpoint_form: ClassVar[str]

    def __init__(self, config: PluginConfig, place: Place) -> None:
        """Take a device and join the other ranks."""
        self.config = config
        self.models: dict[Which, Scorer] = {}
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", place.local_rank)
            torch.cuda.set_device(self.device)
            if config.precision is Precision.tf32:
                torch.set_float32_matmul_precision("high")
        else:
            # Adam's moments of tokens that do not occur fade; below 1e-38 a core takes ten times as long for a number
            torch.set_flush_denormal(True)
            if config.precision is Precision.tf32:
                allowed = "fp32, bf16 or fp16 on a machine without a GPU"
                raise ConfigError("plugin.precision", "tf32", allowed, "Choose plugin.precision=fp32.")
        self.loss_scale = LossScale(config.precision)
        self.micro_batch_tokens = MICRO_BATCH_TOKENS[self.device.type]
        self.ranks = Ranks(place, self.device, self.replica_of(config, place.world_size))

    @classmethod
    def refused(cls, facts: Facts) -> Rule | None:
        """The first rule that is not kept."""
        names = ", ".join(sorted(precision.value for precision in cls.precisions))
        fits = Rule("plugin.precision", names, "Choose one of these.", lambda f: f.plugin.precision in cls.precisions)
        return next((rule for rule in (fits, *cls.rules) if not rule.kept(facts)), None)

    @classmethod
    def of_caller(cls, plugin: Any) -> tuple[PluginConfig, float | None] | None:
        """For `adopt`: the settings under which this one does what a plugin of ColossalAI's does that the caller made,
        and the largest gradient norm that it was told, None for none. None where it is of another kind."""
        return None

    @classmethod
    def replica_of(cls, config: PluginConfig, world_size: int) -> list[int]:
        """The replica that each rank belongs to; here each is one by itself."""
        return list(range(world_size))

    @classmethod
    def expected(cls, config: PluginConfig, world_size: int, sizes: Sizes) -> Footprint | None:
        """The footprint of a rank of so many, from sizes alone and without any rank; None: it cannot be told so."""
        return None

    @abstractmethod
    def prepare(self, build: Builder, make_optimizer: MakeOptimizer, max_grad_norm: float | None) -> None:
        """Build the policy and its optimizer: move, wrap, shard. `max_grad_norm` None leaves gradients unclipped."""

    @abstractmethod
    def adopt(
        self, model: Any, optimizer: Any, finish_logits: Callable[[Tensor], Tensor], max_grad_norm: float | None
    ) -> None:
        """In place of `prepare`: take over what the caller has boosted already by ColossalAI."""

    def seed(self, seed: int) -> None:
        """Set the random number generators, those of each replica differently: dropout draws from them."""
        seed_rng(seed * 1009 + self.ranks.replica)

    @abstractmethod
    def hold_reference(self, build: Builder) -> None:
        """Build a frozen model beside the policy, for `score(..., Which.held)`."""

    def hold_beginning(self) -> None:
        """In place of `hold_reference`, where a part of the policy alone is trained: keep what that is now."""
        raise NotImplementedError(f"{type(self).__name__} trains whole models alone")

    def footprint(self, state_bytes: StateBytes) -> Footprint | None:
        """The bytes that this rank holds in training, as they can be told now; None: nothing is said of them.

        state_bytes: what the optimizer keeps for a tensor that it updates. memory.py answers for torch's parameters.
        """
        return None

    def score(self, micro_batches: Sequence[Batch], which: Which = Which.policy) -> PairLogps:
        """Log-probabilities of this replica's pairs under one of the models; see Scorer."""
        return self.models[which].score(micro_batches)

    @abstractmethod
    def load(self, folder: Path, held: bool) -> None:
        """Go on from a `save`, possibly of another number of ranks; generators only from a rank of the same number."""

    @abstractmethod
    def forward_backward(self, micro_batches: Sequence[Batch], objective: Objective) -> list[LossOutput]:
        """The gradient of one global step, accumulated over the micro-batches and summed over replicas.

        Returns this replica's outputs on every rank, also where one of them alone computed them (Ranks.hand_out).
        """

    @abstractmethod
    def step(self, lr: float) -> float | None:
        """Update with learning rate `lr` and clear the gradients.

        Returns the true norm of the gradient before clipping. Where it is not finite nothing is updated; where fp16
        overflowed, which lowers the loss scale and may happen now and then, it returns None.
        """

    @abstractmethod
    def save(self, folder: Path, held: bool) -> list[str]:
        """Write what a resumed run needs and this plugin holds: weights, master weights, optimizer, this rank's random
        number generators, and, where `held` says that it moves, the held model. safetensors only.

        Called on all ranks; returns the names of the files that this rank wrote.
        """

    @abstractmethod
    def save_weights(self, folder: Path) -> None:
        """Write the policy as safetensors in Hugging Face's form; called on all ranks, one of them writes."""


PLUGINS: Registry[Plugin] = Registry("plugin")
