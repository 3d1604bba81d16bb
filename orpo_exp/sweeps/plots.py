"""A sweep's pictures: final metrics against what was swept, a heat map for two keys, learning curves."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_exp.files import written_beside
from orpo_exp.sweeps.axes import LEGEND, colours, name_ticks, numeric, value_of, values_of
from orpo_exp.sweeps.conditions import as_number
from orpo_exp.sweeps.curves import learning_curves
from orpo_exp.sweeps.groups import Group
from orpo_exp.sweeps.report import columns
from orpo_exp.sweeps.results import Results
from orpo_exp.tracking.console import number
from orpo_exp.tracking.plots import BLUE, INK, along_axis, drawing, heading, new_figure, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = ("metrics", "further_metrics", "heat_map", "learning_curves")


def draw_sweep(results: Results, metric: str, folder: Path) -> dict[Path, str]:
    """Draw what the completed points allow; each file that was written, with what it shows.

    metric: the one that decides; it comes first, and a heat map shows it alone. Pictures of an earlier summary that
    are not drawn again are removed.
    """
    keys = results.keys
    ranked = columns(results, metric)
    main = without_repeats(results.groups, ranked)
    further = [name for name in sorted(results.measured - set(ranked)) if tells(results.groups, name)]
    pictures: dict[str, tuple[Figure, str]] = {}
    with drawing():
        if main and len(keys) <= 2:
            axis, lines = axis_and_lines(results)
            text = f"by `{axis or 'seed'}`" + (f", a colour for each `{lines}`" if lines else "")
            text += ". A dot is one seed, a diamond the mean over seeds, the bar its 95% interval."
            pictures["metrics"] = against(results, axis, lines, main), f"Final held-out metrics {text}"
            if further:
                pictures["further_metrics"] = against(results, axis, lines, further), f"Further held-out metrics {text}"
            if axis and lines:
                text = f"Final `{metric}` by `{keys[0]}` and `{keys[1]}`: mean and 95% interval; grey: no result."
                pictures["heat_map"] = heat_map(results, axis, lines, metric), text
            if curves := learning_curves(results, axis, lines, main):
                text = "Held-out metrics while training" + (f", by `{axis}`" if axis else "")
                pictures["learning_curves"] = curves, f"{text}: mean over seeds; thin lines are single seeds."
        elif main:
            text = (
                f"Final `{metric}` by each key. Grey: all other settings held; blue: the mean over them."
                " With more than two swept keys there are no learning curves here: each run's `plots/` has its own."
            )
            pictures["metrics"] = main_effects(results, metric), text
        folder.mkdir(exist_ok=True)
        for old in PICTURES:
            if old not in pictures:
                (folder / f"{old}.png").unlink(missing_ok=True)
        for name, (figure, _) in pictures.items():
            with written_beside(folder / f"{name}.png") as beside:
                write(figure, beside)
    return {folder / f"{name}.png": text for name, (_, text) in pictures.items()}


def tells(groups: Sequence[Group], metric: str) -> bool:
    """Whether a metric varies and not only repeats the swept number of its name, as lambda does without a schedule."""
    values = [(group, value) for group in groups for value in group.values(metric).values()]
    namesakes = [key for key in groups[0].setting if key.rpartition(".")[2] == metric]
    repeated = any(all(value == as_number(group.setting[key]) for group, value in values) for key in namesakes)
    return len({value for _, value in values}) > 1 and not repeated


def without_repeats(groups: Sequence[Group], metrics: Sequence[str]) -> list[str]:
    """The metrics without those that are in all points what one before is, as ORPO's two accuracies are."""
    found: dict[str, list[dict[str, float]]] = {}
    for name in metrics:
        values = [group.values(name) for group in groups]
        if values not in found.values():
            found[name] = values
    return list(found)


def axis_and_lines(results: Results) -> tuple[str | None, str | None]:
    """Which of up to two keys goes along the axis (numbers before words, then more values before fewer)."""

    def fitness(key: str) -> tuple[bool, int]:
        values = values_of(results.groups, key)
        return numeric(values), len(values)

    ranked = sorted(results.keys, key=fitness, reverse=True)
    return (ranked[0] if ranked else None), (ranked[1] if len(ranked) > 1 else None)


def against(results: Results, axis: str | None, lines: str | None, metrics: Sequence[str]) -> "Figure":
    """A panel for each metric: every seed's final value, the means and their intervals, along `axis`."""
    groups = results.groups
    figure, panels = new_figure(len(metrics), LEGEND)
    values = values_of(groups, axis)
    styles = colours(values_of(groups, lines))
    for ax, name in zip(panels, metrics, strict=True):
        metric = results.metric(name)
        for i, (line, style) in enumerate(styles.items()):
            shift = 0.6 * (i - (len(styles) - 1) / 2) / max(len(styles), 2)
            own = [g for g in groups if value_of(g, lines) == line and g.values(name)]
            places = [values.index(value_of(g, axis)) + shift for g in own]
            joined = style if numeric(values) else style | {"linestyle": ""}
            draw_settings(ax, places, own, name, joined, 0.2 / len(styles))
        cut = limit(ax, groups, name, metric.bounds)
        ax.set_title(heading(metric) + ("\n(bars cut off at the frame)" if cut else ""))
        ax.set(xlabel=axis or "", ylabel=along_axis(name, metric))
        name_ticks(ax, values)
        if metric.level and ax.get_ylim()[0] < metric.level[0] < ax.get_ylim()[1]:
            height, word = metric.level
            ax.axhline(height, color="#888888", linestyle=":", linewidth=1.2, zorder=1)
            ax.annotate(word, (1, height), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                        va="center", color="#888888", fontsize=8)  # fmt: skip
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", color=INK, alpha=0.6, markersize=4, label="one seed"),
        Line2D([], [], marker="D", color=INK, markersize=5, linestyle="", label="mean with its 95% interval"),
        *(Line2D([], [], marker="D", label=f"{lines}={line}", **style) for line, style in styles.items() if lines),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
    return figure


def draw_settings(
    ax: "Axes", places: Sequence[float], groups: Sequence[Group], metric: str, style: Mapping[str, Any], beside: float
) -> None:
    """At each place a setting's seeds as dots, left by `beside`, and their mean as a diamond with its bar. `style` is
    that of the line through the means."""
    means, dots, bars = [], [], []
    for place, group in zip(places, groups, strict=True):
        found = group.estimate(metric)
        assert found is not None
        means.append(found.mean)
        seeds = list(group.values(metric).values())
        middle = (len(seeds) - 1) / 2  # side by side, left of their bar
        dots += [(place + beside * (-1 + 0.4 * (i - middle) / max(middle, 1)), seed) for i, seed in enumerate(seeds)]
        if found.low is not None and found.high is not None:
            bars.append((place, found.mean, found.mean - found.low, found.high - found.mean))
    colour = style["color"]
    ax.plot(*zip(*dots, strict=True), "o", color=colour, alpha=0.6, markersize=4, markeredgewidth=0, zorder=3)
    if bars:
        at, middles, down, up = zip(*bars, strict=True)
        ax.errorbar(at, middles, (down, up), fmt="none", ecolor=colour, elinewidth=1.4, capsize=3, zorder=4)
    ax.plot(places, means, "D", **style, markersize=5, linewidth=1.2, zorder=5, markeredgecolor="white",
            markeredgewidth=0.7)  # fmt: skip


def limit(
    ax: "Axes", groups: Sequence[Group], metric: str, bounds: tuple[float | None, float | None] = (None, None)
) -> bool:
    """Fit the vertical axis to the seeds, for an interval may be twenty times as wide, and to what the metric can be.
    True where a bar is cut."""
    seeds = [value for group in groups for value in group.values(metric).values()]
    margin = 0.6 * (max(seeds) - min(seeds)) or 0.05 * abs(seeds[0]) or 0.1
    low, high = min(seeds) - margin, max(seeds) + margin
    least, most = bounds
    if least is not None:
        low = max(low, min(least, *seeds) - 0.1 * margin)
    if most is not None:
        high = min(high, max(most, *seeds) + 0.1 * margin)
    found = [estimate for group in groups if (estimate := group.estimate(metric))]
    lowest = min([*seeds, *(e.low for e in found if e.low is not None)])
    highest = max([*seeds, *(e.high for e in found if e.high is not None)])
    room = 0.05 * (min(high, highest) - max(low, lowest)) or margin
    ax.set_ylim(max(low, lowest - room), min(high, highest + room))
    return lowest < low or highest > high


def heat_map(results: Results, across: str, down: str, metric: str) -> "Figure":
    """The mean of one metric for each pair of values, written into its field; a field without a result stays grey."""
    import numpy
    from matplotlib.figure import Figure

    groups, about = results.groups, results.metric(metric)
    columns, rows = values_of(groups, across), values_of(groups, down)
    found = {(g.setting[down], g.setting[across]): g.estimate(metric) for g in groups}
    means = [[e.mean if (e := found.get((row, column))) else math.nan for column in columns] for row in rows]
    figure = Figure(figsize=(2.6 + 0.95 * len(columns), 1.6 + 0.55 * len(rows)), layout="constrained")
    ax = figure.add_subplot()
    ax.set_facecolor("#DDDDDD")
    image = ax.imshow(means, cmap="viridis", aspect="auto")
    brightness = image.to_rgba(numpy.asarray(means))[..., :3] @ numpy.array([0.299, 0.587, 0.114])
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            estimate = found.get((row, column))
            if estimate is None:
                continue
            text, ink = number(estimate.mean), "white" if brightness[y, x] < 0.5 else "black"
            if estimate.low is not None and estimate.high is not None:
                half = f"± {(estimate.high - estimate.low) / 2:.2g}"
                text += "\n" + (half if estimate.symmetric else f"[{number(estimate.low)}, {number(estimate.high)}]")
            ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=8)
    ax.set_xticks(range(len(columns)), columns, rotation=35 if max(map(len, columns)) > 9 else 0)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel=across, ylabel=down)
    ax.set_title(heading(about))
    ax.grid(False)
    ax.tick_params(length=0)
    figure.colorbar(image, label=f"{along_axis(metric, about)}, mean over seeds")
    return figure


def main_effects(results: Results, metric: str) -> "Figure":
    """A panel for each key: grey lines hold all other keys, blue is the mean over them."""
    groups, about = results.groups, results.metric(metric)
    figure, panels = new_figure(len(results.keys), LEGEND)
    for ax, key in zip(panels, results.keys, strict=True):
        values = values_of(groups, key)
        rest: dict[tuple[str, ...], dict[int, float]] = {}
        for group in groups:
            if found := group.estimate(metric):
                others = tuple(value for other, value in group.setting.items() if other != key)
                rest.setdefault(others, {})[values.index(group.setting[key])] = found.mean
        for line in rest.values():
            ax.plot(sorted(line), [line[i] for i in sorted(line)], ".-", color="#AAAAAA", linewidth=0.8, markersize=4)
        there = [i for i in range(len(values)) if any(i in line for line in rest.values())]
        means = [statistics.fmean(line[i] for line in rest.values() if i in line) for i in there]
        ax.plot(there, means, "D-", color=BLUE, linewidth=1.8, markersize=5)
        ax.set(xlabel=key, ylabel=along_axis(metric, about))
        ax.set_title(heading(about))
        name_ticks(ax, values)
    figure.legend(
        handles=[panels[0].lines[0], panels[0].lines[-1]],
        labels=["the other keys held", "mean over the other keys"],
        loc="outside lower center",
        ncols=2,
    )
    return figure
