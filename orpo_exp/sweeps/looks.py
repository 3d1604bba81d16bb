"""Early looks at a sweep: learning curves in the terminal while its points run."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from orpo_exp.metrics import Direction, from_json
from orpo_exp.runs.states import read_result
from orpo_exp.sweeps.groups import SEED
from orpo_exp.sweeps.results import points_of
from orpo_exp.sweeps.sweep_file import SweepPoint, read_sweep
from orpo_exp.tracking.jsonl import FILE, read_metrics

LIKELY = ("rewards/accuracy", "logps/accuracy", "loss")  # what is shown is the first of these that there is
COLOURS = ("blue", "red", "green", "magenta", "cyan", "yellow")  # as many settings are drawn at a time
LOWEST, HIGHEST = 5, 12  # rows of the curves
ROUND_IT = 4  # rows of title, frame and steps
BESIDE = 12  # columns that the frame and the numbers beside it take


class Looks:
    """Draws held-out metrics against steps, a curve for each setting: the mean over those of its seeds that have begun,
    as far as all of them have come.

    metric: which one; None: see LIKELY.
    """

    def __init__(self, folder: Path, metric: str | None = None) -> None:
        self._folder, self._metric = folder, metric
        self._known: dict[Path, tuple[int, list[dict[str, Any]]]] = {}

    def drawn(self, width: int, rows: int) -> Text | None:
        """The curves, so many columns wide and at most so many rows high; None where there is no room for them, or no
        setting has two evaluations yet."""
        from uniplot import plot_to_string

        settings: dict[str, list[SweepPoint]] = {}
        for point in points_of(self._folder, read_sweep(self._folder)):
            setting = [f"{key}={value}" for key, value in point.overrides.items() if key != SEED]
            settings.setdefault(", ".join(setting) or "all seeds", []).append(point)
        records = {
            name: [found for point in points if (found := self._evaluations(self._folder / point.folder))]
            for name, points in settings.items()
        }
        known = {name for seeds in records.values() for seed in seeds for record in seed for name in record}
        metric = self._metric or next((name for name in LIKELY if name in known), None)
        curves = {name: mean_curve(seeds, metric) for name, seeds in records.items()} if metric else {}
        curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
        if not curves or metric is None:
            return None
        shown = self._ahead(curves, settings, metric)
        height = min(HIGHEST, rows - ROUND_IT - len(shown))
        if height < LOWEST:
            return None
        some = f": the {len(shown)} of {len(curves)} settings that are ahead" if len(shown) < len(curves) else ""
        text = plot_to_string(
            xs=[list(curve) for curve in shown.values()],
            ys=[list(curve.values()) for curve in shown.values()],
            legend_labels=list(shown),
            color=list(COLOURS[: len(shown)]),
            lines=True,
            title=f"{metric}, held out{some}",
            width=max(20, width - BESIDE),
            height=height,
            character_set="braille",
            legend_placement="vertical",
            x_gridlines=[],
            y_gridlines=[],
        )
        return Text.from_ansi(text)

    def _evaluations(self, run: Path) -> list[dict[str, Any]]:
        """Those of a run, read anew where its file has grown."""
        path = run / FILE
        size = path.stat().st_size if path.exists() else 0
        if path not in self._known or self._known[path][0] != size:
            self._known[path] = size, read_metrics(path, "eval")
        return self._known[path][1]

    def _ahead(
        self, curves: Mapping[str, Mapping[int, float]], settings: Mapping[str, list[SweepPoint]], metric: str
    ) -> dict[str, Mapping[int, float]]:
        """As many as there are colours, those whose latest values are best, in the order of the settings."""
        results = (read_result(self._folder / point.folder) or {} for name in curves for point in settings[name])
        declared = (from_json(result.get("metrics")).get(metric) for result in results)
        good = next((known.good for known in declared if known), None)
        sign = 1 if good is Direction.min else -1
        best = sorted(curves, key=lambda name: sign * [*curves[name].values()][-1])[: len(COLOURS)]
        return {name: curve for name, curve in curves.items() if name in best}


def mean_curve(seeds: list[list[dict[str, Any]]], metric: str) -> dict[int, float]:
    """The mean by step, over the steps at which all seeds have a finite value."""
    values = [{r["step"]: r[metric] for r in seed if math.isfinite(r.get(metric, math.nan))} for seed in seeds]
    common = sorted(set.intersection(*map(set, values))) if values else []
    return {step: statistics.fmean(of[step] for of in values) for step in common}
