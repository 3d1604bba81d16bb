"""What a configuration field may hold: its range and its marks, declared where the field is."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Refused(ValueError):
    """What a user gave cannot be used; the message says why, and what to do. Any other exception is a failure."""


class ConfigError(Refused):
    """A setting that cannot be used: which key, what was given, what is allowed, what to do."""

    def __init__(self, key: str, given: object, allowed: str, do: str) -> None:
        super().__init__(f"{key}: given {given!r}; allowed: {allowed}. {do}")
        self.key, self.given, self.allowed, self.do = key, given, allowed, do

    def under(self, group: str) -> "ConfigError":
        """The same error, its key seen from one level further up."""
        return ConfigError(f"{group}.{self.key}", self.given, self.allowed, self.do)


def setting(
    default: Any = dataclasses.MISSING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    affects_numbers: bool = True,
    as_before: Any = dataclasses.MISSING,
) -> Any:
    """A configuration field with a range.

    `ge`, `gt`, `le`, `lt` bound a number (None as a value is never out of range). `affects_numbers=False` marks a field
    that cannot change what a run computes (where it writes, how many processes share the work): it stays out of
    `config_hash`, and a resumed run may change it. `as_before=VALUE` belongs to a field that was added later: with this
    value everything is computed as it was without the field, which then stays out of `config_hash` as well, so that
    runs and sweeps made before are found again.
    """
    bounds = {name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None}
    marks: dict[str, Any] = {"bounds": bounds, "affects_numbers": affects_numbers}
    if as_before is not dataclasses.MISSING:
        marks["as_before"] = as_before
    return dataclasses.field(default=default, metadata=marks)


def check_steps(key: str, value: float) -> None:
    """Refuse with ConfigError what is neither a share of all steps below 1 nor a whole number of steps."""
    if not (math.isfinite(value) and value >= 0 and (value < 1 or value == int(value))):
        allowed = "a share of all steps from 0 to below 1, or a whole number of steps"
        raise ConfigError(key, value, allowed, "Choose such a value.")


def in_steps(value: float, total_steps: int) -> int:
    """A share of all steps (below 1) or a number of steps (from 1 on) as a number of steps."""
    return int(value) if value >= 1 else round(value * total_steps)


_COMPARE = {
    "ge": ("at least {}", lambda value, bound: value >= bound),
    "gt": ("above {}", lambda value, bound: value > bound),
    "le": ("at most {}", lambda value, bound: value <= bound),
    "lt": ("below {}", lambda value, bound: value < bound),
}


@dataclass
class Settings:
    """Base of every configuration class: checks finiteness and the declared ranges when it is made.

    Raises ConfigError with the field's own name as key; whoever knows the group puts it in front.
    """

    @classmethod
    def numbers_depend_on(cls, field: "dataclasses.Field[Any]") -> bool:
        """Whether a field can change what a run computes."""
        return bool(field.metadata.get("affects_numbers", True))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            bounds: dict[str, float] = field.metadata.get("bounds", {})
            inside = all(_COMPARE[name][1](value, bound) for name, bound in bounds.items())
            if not (math.isfinite(value) and inside):  # nan compares false with every bound
                kind = "a whole number" if isinstance(value, int) else "a finite number"
                allowed = ", ".join([kind, *(_COMPARE[name][0].format(bound) for name, bound in bounds.items())])
                raise ConfigError(field.name, value, allowed, "Choose a value in this range.")


def numeric_content(config: Any, whole: bool = False) -> Any:
    """Everything in a configuration that can change what a run computes, as plain JSON types.

    Fields that were added later are left out while they have the value that means "as before", unless it is to be
    `whole`.
    """
    if isinstance(config, Settings | dict):
        kept = [(name, value) for name, value, mark in _members(config) if whole or value != mark]
        return {name: numeric_content(value, whole) for name, value in kept}
    if isinstance(config, list):
        return [numeric_content(value, whole) for value in config]
    return config.name if isinstance(config, Enum) else config


def content_as_before(config: Any) -> dict[str, Any]:
    """The fields that were added later, each with the value that means "as before", nested as in the configuration."""
    content: dict[str, Any] = {}
    for name, value, mark in _members(config):
        if mark is not ... and not isinstance(value, Settings):
            content[name] = numeric_content(mark)
        elif isinstance(value, Settings | dict):
            content[name] = content_as_before(value)
    return content


def _members(config: Settings | dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, value and `as_before` mark (... for none) of what in a configuration can change what a run computes."""
    if isinstance(config, dict):
        return [(key, value, ...) for key, value in config.items()]
    found = [f for f in dataclasses.fields(config) if config.numbers_depend_on(f)]
    return [(f.name, getattr(config, f.name), f.metadata.get("as_before", ...)) for f in found]


def flat(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        result |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return result
