"""What a search may choose from: an axis for each key that a command gives an interval or several values."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from typing_extensions import override

from orpo_exp.schema import ConfigError
from orpo_exp.sweeps.groups import SEED
from orpo_exp.sweeps.points import Combination, swept_values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 4  # of a value that is chosen from an interval
INSIDE = 0.381966  # of the way between an interval's ends: neither a round number nor a whole one


@dataclass(frozen=True)
class Axis(ABC):
    """What is chosen for one key, as typed, with its `+`."""

    key: str

    @property
    def name(self) -> str:
        """The key by which it is known."""
        return self.key.lstrip("+")

    @property
    @abstractmethod
    def examples(self) -> list[str]:
        """Values that have to be right for all to be."""

    @property
    @abstractmethod
    def distribution(self) -> "BaseDistribution":
        """The same for Optuna."""

    @abstractmethod
    def at(self, place: float) -> object:
        """A value of the distribution's at a place from 0 to 1."""

    @abstractmethod
    def holds(self, value: object) -> bool:
        """Whether it is one of the distribution's values."""

    @abstractmethod
    def text(self, value: object) -> str:
        """A value of the distribution's as one would type it."""


@dataclass(frozen=True)
class Interval(Axis):
    """A number from low to high. whole: a whole one. log: as likely between 1 and 10 as between 10 and 100."""

    low: float
    high: float
    whole: bool
    log: bool

    @property
    @override
    def examples(self) -> list[str]:
        return [self.text(value) for value in (self.low, self.high, self.at(INSIDE))]

    @property
    @override
    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    @override
    def at(self, place: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        inside = low + place * (high - low)
        value = min(max(math.exp(inside) if self.log else inside, self.low), self.high)
        return round(value) if self.whole else value

    @override
    def holds(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    @override
    def text(self, value: object) -> str:
        assert isinstance(value, int | float)
        if self.whole:
            return str(round(value))
        return repr(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))


@dataclass(frozen=True)
class Choice(Axis):
    """One of several values, as typed."""

    values: tuple[str, ...]

    @property
    @override
    def examples(self) -> list[str]:
        return list(self.values)

    @property
    @override
    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    @override
    def at(self, place: float) -> str:
        return self.values[min(int(place * len(self.values)), len(self.values) - 1)]

    @override
    def holds(self, value: object) -> bool:
        return value in self.values

    @override
    def text(self, value: object) -> str:
        return str(value)


@dataclass(frozen=True)
class Space:
    """What a command leaves open. fixed: its other overrides. seeds: a value each that every trial is run with, as
    typed; a single empty text where the command names none."""

    axes: tuple[Axis, ...]
    fixed: tuple[str, ...]
    seeds: tuple[str, ...]

    def point(self, values: Sequence[str], seed: str) -> Combination:
        """The point with these values, one for each axis, and a seed."""
        chosen = {axis.key: value for axis, value in zip(self.axes, values, strict=True)}
        swept = {axis.name: value for axis, value in zip(self.axes, values, strict=True)}
        texts = [*self.fixed, *(f"{key}={value}" for key, value in chosen.items())]
        return Combination([*texts, f"{SEED}={seed}"], swept | {SEED: seed}) if seed else Combination(texts, swept)

    @property
    def examples(self) -> list[Combination]:
        """Points that have to be right for all to be: each axis through its examples, with every seed once."""
        first = [axis.examples[-1] for axis in self.axes]
        others = [
            [*first[:i], value, *first[i + 1 :]] for i, axis in enumerate(self.axes) for value in axis.examples[:-1]
        ]
        points = [first, *others]
        seeds = itertools.chain(self.seeds, itertools.repeat(self.seeds[0]))
        count = max(len(points), len(self.seeds))
        return [self.point(points[i % len(points)], seed) for i, seed in zip(range(count), seeds, strict=False)]

    @property
    def size(self) -> float:
        """How many settings there are; infinite with an interval."""
        return math.prod(len(axis.values) if isinstance(axis, Choice) else math.inf for axis in self.axes)


def space_of(overrides: Sequence[str]) -> Space:
    """What a command leaves open. Raises ConfigError for what cannot be chosen from, or swept."""
    axes: dict[str, Axis] = {}
    fixed: dict[str, str] = {}
    seeds: tuple[str, ...] = ("",)
    for given in OverridesParser.create().parse_overrides(list(overrides)):
        key = given.get_key_element()
        axes.pop(key, None)  # an override given twice counts as the later one
        fixed.pop(key, None)
        if given.is_interval_sweep():
            axes[key] = interval(given, key)
        elif given.is_sweep_override():
            values = tuple(swept_values(given, key.lstrip("+")))
            if key == SEED:
                seeds = values
            else:
                axes[key] = Choice(key, values)
        else:
            fixed[key] = str(given.input_line)
    return Space(tuple(axes.values()), tuple(fixed.values()), seeds)


def interval(given: Override, key: str) -> Interval:
    """The interval that an override gives. Raises ConfigError for one that is none."""
    name, written = key.lstrip("+"), str(given.input_line).partition("=")[2]
    of = given.value()
    assert isinstance(of, IntervalSweep)
    assert of.start is not None
    assert of.end is not None
    log = of.tags == {"log"}
    if name.startswith(("hydra", "sweep.")) or name == SEED:
        allowed = "one value or, of a run's own keys but the seed, an interval"
        raise ConfigError(name, written, allowed, "Give a value, or a list of seeds.")
    if of.tags and not log:
        do = "Write tag(log,interval(1e-4,1e-2)), or interval(0,1)."
        raise ConfigError(name, written, "an interval without a tag, or with the tag log", do)
    if not (math.isfinite(of.start) and math.isfinite(of.end) and of.start < of.end):
        raise ConfigError(name, written, "an interval from a number to a larger one", "Write interval(0,1), say.")
    if log and of.start <= 0:
        raise ConfigError(name, written, "with the tag log, an interval above 0", "Raise its lower end.")
    return Interval(key, of.start, of.end, isinstance(of.start, int) and isinstance(of.end, int), log)


def has_interval(overrides: Sequence[str]) -> str | None:
    """The first override with an interval; None where there is none."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return next((str(given.input_line) for given in parsed if given.is_interval_sweep()), None)
