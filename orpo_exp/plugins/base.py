"""What a plugin is: how processes share one training, and how a forward, a backward and an update are run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from orpo_exp.plugins.processes import Place
from orpo_exp.plugins.rng import seed_rng
from orpo_exp.registry import Registry
from orpo_exp.schema import Settings
from orpo_exp.types import Batch, PairLogps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# (number of the micro-batch, its log-probabilities with gradient) -> () the share of the loss to back-propagate.
# The shares of all micro-batches on all replicas add up to the loss of the global batch.
Objective = Callable[[int, PairLogps], Tensor]


class Precision(Enum):
    """The type that matrix products are computed in."""

    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class PluginConfig(Settings):
    """Settings every plugin has."""

    precision: Precision = Precision.fp32


class Plugin(ABC):
    """Processes, devices, precision, sharding, accumulation and clipping are known here alone.

    After `prepare`, every rank calls the same methods in the same order, with equally many micro-batches.

    rank, world_size: this process among all.
    data_parallel_rank, data_parallel_size: this replica among those that share the global batch.
    """

    Config: ClassVar[type[PluginConfig]]

    def __init__(self, config: PluginConfig, place: Place) -> None:
        self.config, self.place = config, place
        self.rank, self.world_size = place.rank, place.world_size

    @classmethod
    def supports(cls, config: PluginConfig, layout: type) -> str | None:
        """None, or the reason why this plugin cannot run batches of this layout."""
        return None

    def seed(self, seed: int) -> None:
        """Set the random number generators, those of each replica differently: dropout draws from them."""
        seed_rng(seed * 1009 + self.data_parallel_rank)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.rank == 0

    @property
    @abstractmethod
    def data_parallel_rank(self) -> int:
        """This replica's number."""

    @property
    @abstractmethod
    def data_parallel_size(self) -> int:
        """How many replicas share a global batch."""

    @abstractmethod
    def prepare(
        self,
        model: "PreTrainedModel",
        finish_logits: Callable[[Tensor], Tensor],
        optimizer: Optimizer,
        max_grad_norm: float | None,
    ) -> None:
        """Take over model and optimizer: move, wrap, shard. `max_grad_norm` None leaves gradients unclipped."""

    @abstractmethod
    def forward_backward(self, micro_batches: Sequence[Batch], objective: Objective) -> None:
        """The gradient of one global step, accumulated over the micro-batches and summed over replicas."""

    @abstractmethod
    def step(self, lr: float) -> float:
        """Update with learning rate `lr` and clear the gradients.

        Returns the true norm of the gradient before clipping. Where it is not finite nothing is updated.
        """

    @abstractmethod
    def score(self, micro_batches: Sequence[Batch], reference: bool = False) -> PairLogps:
        """Log-probabilities of this replica's pairs without gradient, micro-batch after micro-batch.

        `reference`: under the model that `hold_reference` took, not under the policy.
        """

    @abstractmethod
    def hold_reference(self, model: "PreTrainedModel") -> None:
        """Take a frozen model beside the policy, for `score(..., reference=True)`."""

    @abstractmethod
    def sync_reference(self, mix: float) -> None:
        """Move the held reference towards the policy: reference = mix * policy + (1 - mix) * reference."""

    @abstractmethod
    def weights_digest(self) -> str:
        """A hexadecimal hash of the policy's weights, the same on all ranks."""

    @abstractmethod
    def generate(self, prompts: Sequence[Tensor], max_new_tokens: int, eos: int) -> list[list[int]]:
        """Greedy continuations of prompts given as 1-D ids, each up to `eos` and without it."""

    @abstractmethod
    def save_weights(self, folder: Path) -> None:
        """Write the model as safetensors in Hugging Face's form; called on all ranks, one of them writes."""

    @abstractmethod
    def save(self, folder: Path, reference: bool) -> list[str]:
        """Write what a resumed run needs and this plugin holds: weights, master weights, optimizer, this rank's random
        number generators, and, where `reference` says that it moves, the held reference. safetensors only.

        Called on all ranks; returns the names of the files that this rank wrote.
        """

    @abstractmethod
    def load(self, folder: Path, reference: bool) -> None:
        """Go on from a `save`, possibly of another number of ranks; generators only from a rank of the same number."""

    @abstractmethod
    def sum(self, numbers: Tensor) -> Tensor:
        """Element-wise sum over the replicas of a float64 tensor of one shape, on the CPU."""

    @abstractmethod
    def gather(self, values: Tensor) -> list[Tensor]:
        """Every replica's 1-D tensor, of any length each, on the CPU, in the order of the replicas."""

    @abstractmethod
    def exchange(self, text: str) -> list[str]:
        """What every rank says, in the order of the ranks."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank is here."""

    @abstractmethod
    def peak_memory_bytes(self) -> int:
        """The most memory a rank has held: of the device, or of the process on a CPU; the largest over all ranks."""

    @abstractmethod
    def close(self) -> None:
        """Leave the process group, in order."""


PLUGINS: Registry[Plugin] = Registry("plugin")
