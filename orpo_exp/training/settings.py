"""The loop's settings."""

from dataclasses import dataclass, field

from orpo_exp.metrics import Direction
from orpo_exp.schema import ConfigError, Settings, setting

AUTO = "auto"


@dataclass
class TrainConfig(Settings):
    """The loop's settings; pairs and optimizer steps are the units."""

    global_batch_size: int = setting(64, ge=1)
    micro_batch_size: int | str = setting(AUTO, ge=1, affects_numbers=False)
    micro_batch_tokens: int | None = setting(None, ge=1, affects_numbers=False)
    max_steps: int | None = setting(None, ge=1)
    epochs: float | None = setting(None, gt=0)
    max_grad_norm: float | None = setting(1.0, gt=0)
    eval_every: int = setting(50, ge=0)
    log_every: int = setting(1, ge=1, affects_numbers=False)
    save_every: int = setting(200, ge=0, affects_numbers=False)
    keep_last: int = setting(2, ge=1, affects_numbers=False)
    keep_best: int = setting(0, ge=0, affects_numbers=False)
    best_metric: str = setting("rewards/accuracy", affects_numbers=False)
    best_direction: Direction | None = field(default=None, metadata={"affects_numbers": False})
    samples: int = setting(4, ge=0, affects_numbers=False)
    sample_tokens: int = setting(64, ge=1, affects_numbers=False)
    keep_pairs: bool = setting(False, affects_numbers=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.micro_batch_size, str) and self.micro_batch_size != AUTO:
            allowed = "auto, or a whole number from 1"
            raise ConfigError("micro_batch_size", self.micro_batch_size, allowed, "Choose one of these.")

    @property
    def micro_batch_pairs(self) -> int | None:
        """How many pairs a micro-batch has at most; None where tokens are counted."""
        return None if self.micro_batch_tokens or isinstance(self.micro_batch_size, str) else self.micro_batch_size

    def total_steps(self, steps_per_epoch: int | None) -> int:
        """Optimizer steps of a run: max_steps where it is given, else as many as the epochs hold."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None  # else refused by the configuration
        assert steps_per_epoch is not None
        return max(1, round(self.epochs * steps_per_epoch))
