"""A weighted sum of losses."""

from dataclasses import dataclass, field, replace

from omegaconf import MISSING
from typing_extensions import override

from orpo_exp.losses.base import LOSSES, Loss, LossConfig, Scope
from orpo_exp.metrics import LOGPS, REWARDS, Metric
from orpo_exp.schema import ConfigError
from orpo_exp.types import Counts, LossOutput, Need, PairLogps

SHARED = REWARDS | LOGPS  # what every part reports


@LOSSES.register("combined")
class Combined(Loss):
    """sum over parts of weight * loss. What a part alone reports is named `<part>/<name>`; rewards are of the first.

    Each part keeps its own settings: a weight that a lambda schedule could drive stays at its configured value.
    """

    @dataclass
    class Config(LossConfig):
        """parts: the losses by a name of one's choice; weights: a number for each of them."""

        parts: dict[str, LossConfig] = MISSING
        weights: dict[str, float] = field(default_factory=dict)

        def __post_init__(self) -> None:
            super().__post_init__()
            if set(self.weights) != set(self.parts) or not self.parts:
                allowed = f"a weight for each part and no other: {', '.join(self.parts)}"
                raise ConfigError("weights", dict(self.weights), allowed, "Set loss.weights.<part>=...")
            for name, weight in self.weights.items():
                if not 0 <= weight < float("inf"):
                    raise ConfigError(f"weights.{name}", weight, "a finite number, at least 0", "Choose another.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.parts = {name: LOSSES.build(part) for name, part in config.parts.items()}

    @property
    @override
    def needs_reference(self) -> bool:  # type: ignore[override]
        return any(part.needs_reference for part in self.parts.values())

    @property
    @override
    def scope(self) -> Scope:
        return Scope.batch if any(part.scope is Scope.batch for part in self.parts.values()) else Scope.pair

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset().union(*(part.needs for part in self.parts.values()))

    @property
    @override
    def gradient_needs(self) -> frozenset[Need]:
        return frozenset().union(*(part.gradient_needs for part in self.parts.values()))

    @property
    @override
    def definition(self) -> str:
        """The parts, whatever their names."""
        return " + ".join(f"{self.config.weights[name]} * {part.definition}" for name, part in self.parts.items())

    @property
    @override
    def terms(self) -> dict[str, Metric]:
        return {
            f"{part}/{name}": replace(loss.metrics[name], label=f"{part}: {loss.metrics[name].label}")
            for part, loss in self.parts.items()
            for name in loss.terms
        }

    @property
    @override
    def metrics(self) -> dict[str, Metric]:
        first = next(iter(self.parts.values())).metrics
        return super().metrics | {name: first[name] for name in SHARED}

    @override
    def __call__(self, policy: PairLogps, reference: PairLogps | None, weight: float, counts: Counts) -> LossOutput:
        outputs = {name: part(policy, reference, part.weight, counts) for name, part in self.parts.items()}
        terms = {f"{part}/{name}": value for part, out in outputs.items() for name, value in out.terms.items()}
        per_pair = {
            name if name in SHARED else f"{part}/{name}": values
            for part, out in reversed(outputs.items())  # of what all report, that of the first part stays
            for name, values in out.per_pair.items()
        }
        shares = [self.config.weights[name] * out.loss for name, out in outputs.items()]
        return LossOutput(sum(shares[1:], shares[0]), terms, per_pair)
