"""What an optimizer and a learning-rate schedule are."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from orpo_exp.registry import Registry
from orpo_exp.schema import ConfigError, Settings, check_steps, in_steps, setting


@dataclass
class OptimizerConfig(Settings):
    """Settings every optimizer has.

    lr: the peak learning rate; None until the configuration is checked, which then takes the model's `suited_lr`.
    weight_decay: of weight matrices, per step, as a share of the learning rate.
    """

    lr: float | None = setting(None, gt=0)
    weight_decay: float = setting(0.0, ge=0)


class OptimizerFactory(ABC):
    """Makes a torch optimizer for a model's parameters.

    elementwise: each number's update depends on its gradient and its own state alone, whatever else is there.
    distributed: where the parameters are cut, ColossalAI puts a form of it in its place that makes the same update.
    whole_because: for one that is neither, why it must have every parameter whole.
    needs_gpu: it updates only what lies on a GPU.
    """

    Config: ClassVar[type[OptimizerConfig]] = OptimizerConfig
    elementwise: ClassVar[bool] = False
    distributed: ClassVar[bool] = False
    whole_because: ClassVar[str] = "it does not declare that each number is updated by itself"
    needs_gpu: ClassVar[bool] = False

    def __init__(self, config: OptimizerConfig) -> None:
        """Raises ConfigError where this machine lacks what it runs with."""
        self.config = config
        if (lacking := self.lacking()) is not None:
            do = "Provide that, or choose another optimizer, e.g. adamw."
            raise ConfigError("optimizer", type(self).__name__, f"an optimizer that does not need {lacking}", do)

    @classmethod
    def lacking(cls) -> str | None:
        """None, or what it runs with that this machine lacks."""
        return None

    @classmethod
    def refuses(cls, cut: bool, offloaded: bool) -> str | None:
        """None, or the reason why it cannot update parameters that lie like this.

        cut: into ZeRO's flat ranges, or by tensor parallelism into rows and columns. offloaded: into the host's memory
        from a model on GPUs.
        """
        if cut and not (cls.elementwise or cls.distributed):
            return cls.whole_because
        if offloaded and cls.needs_gpu:
            return "it updates only what lies on a GPU"
        if offloaded and not cls.elementwise:
            return "its ranks talk of each update by way of the GPUs"
        return None

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        assert self.config.lr is not None  # filled in when the configuration is checked
        return self.config.lr

    @abstractmethod
    def make(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer over all parameters that require a gradient."""

    def state_bytes(self, parameter: Tensor) -> int | None:
        """The bytes that it keeps for a parameter, or for what a rank has of it, from its first step on, its count of
        steps aside; None: it does not say."""
        return None

    def groups(self, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups with and without decay: norms and biases, the one-dimensional ones, are not decayed."""
        trained = [p for p in parameters if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.config.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]


@dataclass
class SchedulerConfig(Settings):
    """Settings every schedule has. warmup: below 1 a share of all steps, from 1 on a number of steps."""

    warmup: float = setting(0.05, ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("warmup", self.warmup)


class Scheduler(ABC):
    """The learning rate over the run, as a factor on the optimizer's peak rate."""

    Config: ClassVar[type[SchedulerConfig]] = SchedulerConfig

    def __init__(self, config: SchedulerConfig, total_steps: int) -> None:
        self.config, self.total_steps = config, total_steps
        self.warmup_steps = in_steps(config.warmup, total_steps)

    def factor(self, step: int) -> float:
        """The factor at optimizer step `step`, counted from 1.

        It rises over the warmup to 1 and begins to fall after it; no step is spent at the end of the decay itself,
        which for a decay to 0 would be a step of rate 0.
        """
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        return self.decay((step - 1 - self.warmup_steps) / (self.total_steps - self.warmup_steps))

    @abstractmethod
    def decay(self, progress: float) -> float:
        """The factor after the warmup; `progress` runs from 0 and would reach 1 one step behind the last."""


OPTIMIZERS: Registry[OptimizerFactory] = Registry("optimizer")
SCHEDULERS: Registry[Scheduler] = Registry("scheduler")
