"""A sweep's learning curves: evaluations against steps."""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orpo_exp.sweeps.axes import LEGEND, colours, value_of, values_of
from orpo_exp.sweeps.results import Results
from orpo_exp.tracking.jsonl import FILE, read_metrics
from orpo_exp.tracking.plots import along_axis, count_steps, format_values, heading, new_figure, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 9


def learning_curves(results: Results, axis: str | None, lines: str | None, metrics: Sequence[str]) -> "Figure | None":
    """Evaluations against steps, a colour for each value of `axis`; a panel for each metric or, with two keys, for each
    value of the other one. None where there would be no line or too many panels."""
    groups = results.groups
    records = {point.folder: read_metrics(point.folder / FILE, "eval") for point in results.counted}
    panels = [(metric, other) for metric in (metrics[:1] if lines else metrics) for other in values_of(groups, lines)]
    if len(panels) > MOST_PANELS or not any(len(evaluations) > 1 for evaluations in records.values()):
        return None
    figure, axes = new_figure(len(panels), LEGEND)
    styles = colours(values_of(groups, axis))
    for ax, (metric, other) in zip(axes, panels, strict=True):
        heights: list[list[float]] = []
        for group in [group for group in groups if value_of(group, lines) == other]:
            style = styles[value_of(group, axis)]
            seeds = [dict(zip(*series(records[point.folder], metric), strict=True)) for point in group.points]
            heights += [list(seed.values()) for seed in seeds]
            if len(seeds) > 1:  # one line with gaps: sooner drawn than a line for each seed
                at = [step for seed in seeds for step in (*seed, math.nan)]
                values = [value for seed in seeds for value in (*seed.values(), math.nan)]
                ax.plot(at, values, linewidth=0.6, alpha=0.35, **style)
            steps = sorted(set.intersection(*(set(seed) for seed in seeds)))
            means = [statistics.fmean(seed[step] for seed in seeds) for step in steps]
            ax.plot(steps, means, linewidth=1.8, **style)
        about = results.metric(metric)
        ax.set_title(f"{lines}={other}" if lines else heading(about))
        ax.set_ylabel(along_axis(metric, about))
        count_steps(ax)
        format_values(ax)
        leave_out_the_start(ax, heights)
    if lines:
        low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
        for ax in axes:
            ax.set_ylim(low, high)
    if axis:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], linewidth=1.8, label=value, **style) for value, style in styles.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), title=axis)
    return figure


def leave_out_the_start(ax: "Axes", lines: Sequence[Sequence[float]]) -> None:
    """Fit the vertical axis to what comes after the first evaluation, where the fall from it hides the rest."""
    whole = [height for line in lines for height in line]
    later = [height for line in lines for height in line[1:]]
    if later and max(later) - min(later) < 0.5 * (max(whole) - min(whole)):
        room = 0.06 * (max(later) - min(later)) or 0.05
        ax.set_ylim(min(later) - room, max(later) + room)
        ax.set_title(f"{ax.get_title(loc='left')}\n(the start lies outside the frame)")
