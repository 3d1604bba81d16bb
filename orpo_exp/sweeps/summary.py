"""The answer of a sweep, from its runs' folders: summary.md, summary.csv, summary.json and plots/.

    python -m orpo_exp.sweeps.summary FOLDER...

rebuilds each sweep's own; of several folders it also makes one summary together.
"""

import argparse
import csv
import fcntl
import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orpo_exp.files import locked, write_atomically
from orpo_exp.metrics import Direction
from orpo_exp.schema import Refused
from orpo_exp.sweeps.groups import Group, Point
from orpo_exp.sweeps.headline import Headline, headline
from orpo_exp.sweeps.report import page
from orpo_exp.sweeps.results import METRIC, SAME, Results, ranking_metric, read_results

log = logging.getLogger(__name__)

LOCK = ".summary.lock"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild summaries and print the answers; 0, or 2 where a folder is none of a sweep."""
    parser = argparse.ArgumentParser("python -m orpo_exp.sweeps.summary", description="Summarise sweeps from disk.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a sweep's folder, or one of runs")
    parser.add_argument("--metric", help=f"held-out metric that decides; {METRIC}, or {SAME}, if not given")
    parser.add_argument(
        "--direction", choices=list(Direction), type=Direction, help="its good end, where the runs do not say"
    )
    parser.add_argument(
        "--output", type=Path, help="where a summary of all folders goes; ./summary for several folders"
    )
    given = parser.parse_args(arguments)
    output = given.output or (Path("summary") if len(given.folders) > 1 else None)
    try:
        for folder in given.folders:
            tell(folder, write_summary(folder, given.metric, given.direction))
        if output:
            output.mkdir(parents=True, exist_ok=True)
            with locked(output / LOCK):
                tell(output, summarise(given.folders, output, given.metric, given.direction))
    except (Refused, OSError) as error:
        print(f"orpo_exp.sweeps.summary: {error}", file=sys.stderr)
        return 2
    return 0


def tell(folder: Path, answer: Headline) -> None:
    """Print the answer and where the rest of it lies."""
    print(f"{answer.text}\n{folder / 'summary.md'}\n")


def write_summary(folder: Path, metric: str | None = None, direction: Direction | None = None) -> Headline:
    """Rebuild a sweep's summary in its folder, once whoever does so already has ended.

    metric: what decides; None: what the sweep was told, else see ranking_metric. direction: its good end; None: what
    the sweep was told, else as the runs declare it.
    Raises Refused where the folder holds no runs, where no completed point has the metric that was asked for, or where
    its good end is not known.
    """
    if not folder.is_dir():
        raise Refused(f"{folder} is no folder; give the folder of a sweep.")
    with locked(folder / LOCK):
        return summarise([folder], folder, metric, direction)


def point_ended(folder: Path) -> None:
    """Rebuild a sweep's summary, or leave that to a point that waits to do so already and will read this one's result.

    So a hundred points that end together keep their GPUs for the time of two summaries, not of a hundred.
    """
    with (folder / ".summary.waiting").open("w") as place:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            pass  # no locks on this disk, which `locked` tells of
        with locked(folder / LOCK):
            place.close()  # from here on results are read: the next one has to wait for its own turn
            summarise([folder], folder, None, None)


def summarise(folders: Sequence[Path], output: Path, metric: str | None, direction: Direction | None) -> Headline:
    """Write one summary of all the folders' points into `output`; see write_summary."""
    results = read_results(folders)
    known = results.measured
    if metric and known and metric not in known:
        raise Refused(f"no completed point has the metric {metric!r}; there are {', '.join(sorted(known))}.")
    metric = metric or results.asked or ranking_metric(results)
    direction = direction or (results.good if metric == results.asked else None) or results.metric(metric).good
    if direction is None:
        raise Refused(f"{metric} has no end known as the good one: give --direction max or min.")
    answer = headline(results, metric, direction)
    command = ["python", "-m", "orpo_exp.sweeps.summary", *(shown(folder) for folder in folders)]
    if len(folders) > 1:
        command += ["--output", shown(output)]
    pictures = draw_pictures(results, answer, output)
    write_atomically(output / "summary.md", page(results, answer, pictures, output, shlex.join(command)))
    draw_page(results, answer, output)
    write_atomically(output / "summary.csv", as_csv(results, output))
    write_atomically(output / "summary.json", as_json(results, answer, output))
    return answer


def draw_pictures(results: Results, answer: Headline, output: Path) -> dict[Path, str]:
    """Draw plots/; a picture that cannot be drawn costs no table."""
    from orpo_exp.sweeps.plots import draw_sweep

    try:
        return draw_sweep(results, answer.metric, output / "plots")
    except Exception as error:
        log.warning("the sweep's plots could not be drawn: %s: %s", type(error).__name__, error, exc_info=True)
        return {}


def draw_page(results: Results, answer: Headline, output: Path) -> None:
    """Write report.html; a page that cannot be written costs no table."""
    from orpo_exp.sweeps.report_page import write_sweep_page

    try:
        write_sweep_page(results, answer, output)
    except Exception as error:
        log.warning("report.html could not be written: %s: %s", type(error).__name__, error, exc_info=True)


def shown(path: Path) -> str:
    """A path as one types it: from the current directory where it lies below, else whole."""
    relative = os.path.relpath(path)
    return str(path.resolve()) if relative.startswith("..") else relative


def as_csv(results: Results, output: Path) -> str:
    """A row for each point: swept keys, seed, state, every final metric as eval/<name>, steps, wall time, folder."""
    metrics = sorted({name for point in results.points for name in point.metrics})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"eval/{name}" for name in metrics]  # a swept key may have a metric's name
    writer.writerow([*results.keys, "seed", "state", *columns, "steps", "wall_time_seconds", "folder"])
    for point in results.points:
        numbers = [point.metrics.get(name, "") for name in metrics]
        place = os.path.relpath(point.folder, output)
        settings = [point.settings.get(key, "") for key in results.keys]
        writer.writerow([*settings, point.seed, point.state, *numbers, point.steps, point.seconds, place])
    return out.getvalue()


def as_json(results: Results, answer: Headline, output: Path) -> str:
    """Everything: the answer, each setting's metrics with intervals, each point."""
    content = {
        "title": results.title,
        "swept": results.keys,
        "varies_along": results.along,
        "metric": answer.metric,
        "direction": answer.direction,
        "answer": answer.text,
        "best": answer.ranking[0].setting if answer.ranking else None,
        "lead": [
            {"setting": group.setting, "told_apart": lead.clear, **asdict(lead)}
            for group, lead in zip(answer.ranking[1:], answer.behind, strict=True)
        ],
        "settings": [setting_content(group) for group in results.groups],
        "points": [point_content(point, results, output) for point in results.points],
        "wall_time_seconds": results.seconds,
        "gpu_hours": results.gpu_hours,
        "cpu_core_hours": results.core_hours,
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def setting_content(group: Group) -> dict[str, Any]:
    """One setting: its seeds and each metric's estimate."""
    metrics = sorted({name for point in group.points for name in point.metrics})
    estimates = {name: asdict(found) for name in metrics if (found := group.estimate(name))}
    test = {name: asdict(found) for name in metrics if (found := group.tested(name))}
    seeds = [point.seed for point in group.points]
    return {"setting": group.setting, "seeds": seeds, "metrics": estimates, "test": test}


def point_content(point: Point, results: Results, output: Path) -> dict[str, Any]:
    """One point, counted or not."""
    return {
        "folder": os.path.relpath(point.folder, output),
        "setting": {key: point.settings.get(key) for key in results.keys},
        "seed": point.seed,
        "state": point.state,
        "reason": point.reason,
        "counted": point in results.counted,
        "config_hash": point.config_hash,
        "metrics": point.metrics,
        "test": point.test,
        "steps": point.steps,
        "wall_time_seconds": point.seconds,
        "gpus": point.gpus,
        "cores": point.cores,
    }


if __name__ == "__main__":
    sys.exit(main())
