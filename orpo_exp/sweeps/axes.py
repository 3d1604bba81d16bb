"""What a sweep's pictures share: colours of values, names along an axis."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orpo_exp.sweeps.conditions import as_number
from orpo_exp.sweeps.groups import NOWHERE, Group, ordered
from orpo_exp.tracking.plots import BLUE, GREEN, INK, VERMILION, format_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", INK)  # Okabe and Ito; for values without an order
DASHES = ("-", "--", ":", "-.")
LEGEND = 0.6  # inches below the panels
LONG = 28  # characters of tick labels that fit side by side below a panel


def numeric(values: Sequence[str]) -> bool:
    """Whether a key's values have an order, those left out where points do not have the key."""
    return all(as_number(value) is not None for value in values if value != NOWHERE)


def colours(values: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A line style for each value: along a scale from dark to light for numbers, set apart for words."""
    from matplotlib import colormaps

    if numeric(values):
        scale, last = colormaps["viridis"], max(len(values) - 1, 1)
        return {value: {"color": scale(0.85 * i / last), "linestyle": "-"} for i, value in enumerate(values)}
    looks = itertools.cycle(itertools.product(DASHES, WORDS))
    return {value: {"color": colour, "linestyle": dash} for value, (dash, colour) in zip(values, looks, strict=False)}


def value_of(group: Group, key: str | None) -> str:
    """A setting's value of a key; one name for all settings where there is no key."""
    return group.setting[key] if key else "all seeds"


def values_of(groups: Sequence[Group], key: str | None) -> list[str]:
    """The different values of a key, in order."""
    return ordered(value_of(group, key) for group in groups)


def name_ticks(ax: "Axes", values: Sequence[str]) -> None:
    """Name the places along the axis, one for each value, evenly spaced; of very many only some."""
    step = math.ceil(len(values) / 16)
    names = values[::step]
    slanted = sum(map(len, names)) > LONG
    places = range(0, len(values), step)
    ax.set_xticks(places, names, rotation=35 if slanted else 0, ha="right" if slanted else "center")
    ax.set_xlim(-0.6, len(values) - 0.4)
    ax.grid(False, axis="x")
    format_values(ax)
