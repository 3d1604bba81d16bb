"""What a race has decided, as it is written down and read back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_exp.metrics import Direction
from orpo_exp.sweeps.conditions import as_typed
from orpo_exp.sweeps.statistics import Difference

RACES = "races"  # the folder of their files


@dataclass(frozen=True)
class Standing:
    """One setting at a rung. seeds: how many had come so far. mean: of the metric over them. lead: the best setting's
    over this one, positive where it is ahead; None for the best. out: whether it was set aside."""

    setting: dict[str, str]
    seeds: int
    mean: float
    lead: Difference | None
    out: bool

    @property
    def name(self) -> str:
        """The setting as one would type it."""
        return as_typed(self.setting)


@dataclass(frozen=True)
class Decision:
    """What was decided after a rung. share: of the steps. standings: the best first.
    set_aside: why, by the points' folders' names."""

    share: float
    metric: str
    direction: Direction
    standings: list[Standing]
    set_aside: dict[str, str]


def out_of(decisions: Sequence[Decision]) -> dict[str, str]:
    """All that these set aside, with why."""
    return {name: why for decision in decisions for name, why in decision.set_aside.items()}


def read_decisions(path: Path) -> list[Decision]:
    """What a file that Race wrote holds; nothing where there is none."""
    if not path.exists():
        return []
    return [decision(content) for content in json.loads(path.read_text(encoding="utf-8"))["decisions"]]


def decision(content: Mapping[str, Any]) -> Decision:
    """A decision as JSON holds it."""
    standings = [
        Standing(**of | {"lead": Difference(**of["lead"]) if of["lead"] else None}) for of in content["standings"]
    ]
    return Decision(**{**content, "direction": Direction(content["direction"]), "standings": standings})


def latest_decisions(folder: Path) -> list[Decision]:
    """Those of the race in a sweep's folder that decided last; none without a race."""
    files = sorted((folder / RACES).glob("*.json"), key=lambda path: path.stat().st_mtime)
    return read_decisions(files[-1]) if files else []
