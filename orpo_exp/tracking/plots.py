"""The curves of one run as pictures, drawn from its metrics.jsonl by what its result.json says that its metrics are."""

import gc
import itertools
import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_exp.metrics import Direction, Metric, from_json
from orpo_exp.tracking.jsonl import FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[dict[str, Any]]

# colours of Okabe and Ito, which every eye tells apart
BLUE, GREEN, VERMILION, INK = "#0072B2", "#009E73", "#D55E00", "#333333"
STYLE: Any = {  # matplotlib wants its keys as literals
    "figure.dpi": 150,
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titley": 1.0,  # else it is looked for where no tick label is, and none is up there
    "axes.labelcolor": INK,
    "axes.edgecolor": "#AAAAAA",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "grid.color": "#E8E8E8",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.7,
}
WIDE = 48  # characters of a title that fit above a panel
FEW = 40  # up to so many points are marked one by one; more are drawn faintly, with a running mean on top


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    metrics: what is drawn in it, by name; where it is two, the area between them is filled.
    title: None where it is what the first metric is.
    held_out: evaluations are drawn as well.
    smooth: many points get a running mean; false for what is set, not measured.
    limits: of the vertical axis, None where they follow the numbers.
    """

    metrics: tuple[str, ...]
    title: str | None = None
    held_out: bool = True
    smooth: bool = True
    limits: tuple[float | None, float | None] = (None, None)


PREFERENCE = (
    Panel(("rewards/chosen", "rewards/rejected"), "rewards, the margin between them shaded"),
    Panel(("rewards/margin",)),
    Panel(("rewards/accuracy",), limits=(-0.02, 1.02)),
)
TRAINING = tuple(
    Panel((name,), held_out=False, smooth=measured, limits=(0.0, None))
    for name, measured in (("lr", False), ("lam", False), ("grad_norm", True), ("pairs_per_second", True))
)


def plot_run(folder: Path) -> list[Path]:
    """Draw plots/loss.png, preference.png and training.png from a run's metrics; the files that were written.

    A metric that is missing is left out, and so is a picture that would be empty.
    """
    records = read_metrics(folder / FILE)
    path = folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    about = from_json(None) | from_json(result.get("metrics"))  # what the metrics are, those of every run among them
    names = {name for record in records for name in record}
    trained = {name for record in records if record["split"] == "train" for name in record}
    falling = [name for name, metric in about.items() if metric.good is Direction.min]
    pictures = {
        "loss": [Panel((name,)) for name in dict.fromkeys(["loss", *falling])],
        "preference": PREFERENCE,
        "training": TRAINING,
    }
    written = []
    for picture, panels in pictures.items():
        there = [p for p in panels if not (names if p.held_out else trained).isdisjoint(p.metrics)]
        if there:
            written.append(save(folder / "plots" / f"{picture}.png", there, records, about))
    return written


def heading(metric: Metric) -> str:
    """What a metric is, in lines that fit above a panel."""
    return textwrap.fill(metric.label, WIDE)


def along_axis(name: str, metric: Metric) -> str:
    """What is written along a metric's axis: its name and its unit."""
    return f"{name} in {metric.unit}" if metric.unit else name


def save(path: Path, panels: Sequence[Panel], records: Records, about: Mapping[str, Metric]) -> Path:
    """Draw panels into one file."""
    path.parent.mkdir(exist_ok=True)
    with drawing():
        write(draw(panels, records, about), path)
    return path


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the house's style, without looking for garbage among what was there before: with torch half a second."""
    gc.freeze()
    try:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            yield
    finally:
        gc.unfreeze()


def write(figure: "Figure", path: Path) -> None:
    """Draw a figure into a PNG file: once, where savefig draws a second time for the layout alone, and in a palette of
    128 colours, which is a third as large and looks the same."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    Image.fromarray(numpy.asarray(canvas.buffer_rgba())).convert("RGB").quantize(128).save(path, "PNG")


def new_figure(panels: int, below: float = 0.0) -> tuple["Figure", list["Axes"]]:
    """A figure and its panels side by side, four of them in a square. below: room for a legend, in inches."""
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global

    columns = 2 if panels == 4 else min(panels, 3)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(4.4 * columns, 3.0 * rows + below), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]


def count_steps(ax: "Axes") -> None:
    """Whole numbers along the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def format_values(ax: "Axes") -> None:
    """A few plain numbers along the vertical axis."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.5g}"))


def draw(panels: Sequence[Panel], records: Records, about: Mapping[str, Metric]) -> "Figure":
    """Draw panels into a figure."""
    figure, axes = new_figure(len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        draw_panel(ax, panel, records, about)
    return figure


def draw_panel(ax: "Axes", panel: Panel, records: Records, about: Mapping[str, Metric]) -> None:
    """Draw one panel: training as a line, evaluations as circles, steps without a finite value as crosses below."""
    train = [record for record in records if record["split"] == "train"]
    held_out = [record for record in records if record["split"] == "eval" and panel.held_out]
    trained = {name for record in train for name in record}
    metric, several = about[panel.metrics[0]], len(panel.metrics) > 1
    if metric.level is not None:
        ax.axhline(metric.level[0], color="#888888", linestyle=":", linewidth=1.2, label=metric.level[1])
    circles: dict[str, Any] = {"markerfacecolor": "white", "markersize": 5.5, "markeredgewidth": 1.5}
    for name, colour in zip(panel.metrics, (GREEN, VERMILION) if several else (BLUE,), strict=True):
        prefix = f"{name.rpartition('/')[2]}, " if several else ""
        draw_train(ax, *series(train, name), colour, f"{prefix}train", panel.smooth)
        steps, values = series(held_out, name)
        joined = "" if name in trained else ":"  # the line of training shows the way from one to the next
        ax.plot(steps, values, f"o{joined}", color=colour, label=f"{prefix}held out", linewidth=1, zorder=4, **circles)
        broken = [r["step"] for r in (*train, *held_out) if not math.isfinite(r.get(name, 0.0))]
        ax.plot(broken, [0.02] * len(broken), "x", color="red", transform=ax.get_xaxis_transform(), label="not finite")
    if several:
        upper, lower = (dict(zip(*series(train, name), strict=True)) for name in panel.metrics)
        steps = sorted(upper.keys() & lower.keys())
        ax.fill_between(steps, [upper[s] for s in steps], [lower[s] for s in steps], color=INK, alpha=0.07, linewidth=0)
    ax.set_title(panel.title or heading(metric))
    ax.set_ylabel(along_axis(" and ".join(panel.metrics), metric))
    count_steps(ax)
    format_values(ax)
    ax.set_ylim(*panel.limits)
    last = max(1, max(record["step"] for record in records))
    ax.set_xlim(-0.03 * last, 1.03 * last)
    for line in list(ax.lines):
        if not len(line.get_xdata()):  # type: ignore[arg-type]
            line.remove()
    handles, labels = ax.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    if len(named) > 1:
        ax.legend(named.values(), named.keys()).set_in_layout(False)  # it lies within the panel


def draw_train(ax: "Axes", steps: list[int], values: list[float], colour: str, label: str, smooth: bool) -> None:
    """Draw the numbers of the training steps, so that one of them shows as well as ten thousand do."""
    if len(values) <= FEW:
        ax.plot(steps, values, ".-", color=colour, markersize=5, linewidth=1.4, zorder=5, label=label)
        return
    if smooth:
        ax.plot(steps, values, "-", color=colour, linewidth=0.8, alpha=0.3)
        values = running_mean(values)
    ax.plot(steps, values, "-", color=colour, linewidth=1.8, label=label)


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours, fewer of them towards the ends: a slope stays where it is."""
    count, reach = len(values), len(values) // 50 + 1
    sums = [0.0, *itertools.accumulate(values)]
    means = []
    for i in range(count):
        r = max(min(i, count - 1 - i, reach), reach // 3)
        first, end = max(i - r, 0), min(i + r + 1, count)
        means.append((sums[end] - sums[first]) / (end - first))
    return means


def series(records: Records, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, where it is there and finite."""
    points = [(r["step"], r[name]) for r in records if math.isfinite(r.get(name, math.nan))]
    return [step for step, _ in points], [value for _, value in points]
