"""What a metric is: its label, its unit, which end is good. Declared where it is made, kept in result.json, read there.

Those that every run has are declared here; a loss declares its own beside them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Direction(StrEnum):
    """Which end of a metric is the good one."""

    max = "max"
    min = "min"


@dataclass(frozen=True)
class Metric:
    """label: what it is, in a few words. unit: of its numbers, empty for none. good: its good end, None for neither.
    level: a height worth knowing, and its name.
    definition: how it is computed, where one name means different things in different runs: only where these are equal
    can two runs be compared by it.
    bounds: the least and the most that it can be, None for neither; an interval may reach beyond.
    """

    label: str
    unit: str = ""
    good: Direction | None = None
    level: tuple[float, str] | None = None
    definition: str = ""
    bounds: tuple[float | None, float | None] = (None, None)


SHARE = (0.0, 1.0)
LOSS = Metric("loss", good=Direction.min)
REWARDS = {
    "rewards/chosen": Metric("reward of the chosen answers"),
    "rewards/rejected": Metric("reward of the rejected answers"),
    "rewards/margin": Metric("reward of the chosen less the rejected answer", good=Direction.max, level=(0.0, "")),
    "rewards/accuracy": Metric(
        "share of pairs with the chosen reward ahead", good=Direction.max, level=(0.5, "chance"), bounds=SHARE
    ),
}
LOGPS = {
    "logps/chosen": Metric(
        "log-probability of the chosen answers", "nats per token", Direction.max, bounds=(None, 0.0)
    ),
    "logps/rejected": Metric("log-probability of the rejected answers", "nats per token", bounds=(None, 0.0)),
    "logps/accuracy": Metric(
        "share of pairs with the chosen answer more probable per token",
        good=Direction.max,
        level=(0.5, "chance"),
        bounds=SHARE,
    ),
}
TRAINING = {
    "lr": Metric("learning rate"),
    "lam": Metric("lambda"),
    "grad_norm": Metric("gradient norm before clipping"),
    "overflows": Metric("steps skipped because fp16 overflowed"),
    "loss_scale": Metric("factor on fp16's loss"),
    "pairs_per_second": Metric("training speed", "pairs/s"),
    "tokens_per_second": Metric("training speed", "tokens/s"),
}


def to_json(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Declarations as result.json keeps them."""
    return {name: asdict(metric) for name, metric in metrics.items()}


def from_json(content: Mapping[str, Any] | None) -> dict[str, Metric]:
    """The reverse of `to_json`; those of every run alone for a result.json without them (before version 0.2)."""
    if content is None:
        return {"loss": LOSS, **REWARDS, **LOGPS, **TRAINING}
    return {
        name: Metric(
            of["label"],
            of["unit"],
            Direction(of["good"]) if of["good"] else None,
            tuple(of["level"]) if of["level"] else None,
            of["definition"],
            tuple(of.get("bounds", (None, None))),
        )
        for name, of in content.items()
    }
