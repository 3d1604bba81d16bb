"""How a sweep is coming along, point by point.

python -m orpo_exp.sweeps.status FOLDER [--follow]
"""

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orpo_exp.runs.states import State, how_many, read_result, slurm_queue
from orpo_exp.schema import Refused
from orpo_exp.sweeps.conditions import as_typed
from orpo_exp.sweeps.results import points_of, reason
from orpo_exp.sweeps.sweep_file import read_sweep
from orpo_exp.tracking.console import duration, number
from orpo_exp.tracking.jsonl import FILE, parsed

TAIL_BYTES = 32_768
WIDE = 200  # columns where the output is no terminal
CALM = (State.missing, State.queued, State.waiting, State.completed, State.set_aside)
STYLES = {
    State.running: "bold cyan",
    State.completed: "green",
    State.failed: "bold red",
    State.killed: "bold red",
    State.interrupted: "yellow",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and return 0, or follow the sweep to its end; 2 where the folder is none of a sweep."""
    parser = argparse.ArgumentParser("python -m orpo_exp.sweeps.status", description="How a sweep is coming along.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a sweep's folder, or one of runs")
    parser.add_argument(
        "--follow", action="store_true", help="keep showing it, with learning curves, until all has ended"
    )
    parser.add_argument(
        "--metric", help="the held-out metric whose curves --follow shows; rewards/accuracy if not given"
    )
    given = parser.parse_args(arguments)
    try:
        if given.follow:
            from orpo_exp.sweeps.progress import follow

            return follow(given.folder, given.metric)
        page = status_table(given.folder)
    except (Refused, OSError) as error:
        print(f"orpo_exp.sweeps.status: {error}", file=sys.stderr)
        return 2
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(page)
    return 0


def status_table(folder: Path, most: int | None = None) -> RenderableType:
    """A row for each point, and how many are in which state. Cheap enough to be asked for again and again.

    most: rows that there is room for; what runs or has come to grief is shown before what waits or has completed.
    Raises Refused where the folder holds no runs.
    """
    sweep = read_sweep(folder)
    points = points_of(folder, sweep)
    queue = slurm_queue() if sweep is None or sweep.by_slurm else None  # of runs it may know
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("point", overflow="fold")
    table.add_column("state")
    for title in ("step", "loss", "left"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("why", no_wrap=True, overflow="ellipsis")
    states = [point.state(folder, queue) for point in points]
    order = sorted(range(len(points)), key=lambda place: states[place] in CALM)
    shown = sorted(order[:most])
    for point, state in [(points[place], states[place]) for place in shown]:
        place = folder / point.folder
        result = read_result(place) or {}
        label = as_typed(point.overrides) or point.folder
        progress = how_far(result, last_records(place / FILE), state)
        why = "" if state in (State.running, State.missing) else reason(state, result, point.job(queue)) or ""
        table.add_row(Text(label), Text(state, STYLES.get(state, "dim")), *progress, Text(why))
    others = f"; {len(points) - len(shown)} of them are not shown" if len(shown) < len(points) else ""
    waiting = len(sweep.not_begun(queue)) if sweep else 0
    others += f"; {waiting} more wait for their jobs to begin" if waiting else ""
    return Group(table, "", Text(f"{len(points)} points: {how_many(states)}{others}"))


def how_far(result: Mapping[str, Any], records: Sequence[Mapping[str, Any]], state: State) -> tuple[str, str, str]:
    """Step of all steps, the latest loss, and, while it runs, the time left at the speed of its latest steps."""
    if not result:
        return "", "", ""
    step, total = max([result.get("steps", 0), *(r["step"] for r in records)]), result.get("total_steps")
    losses = [r["loss"] for r in records if isinstance(r.get("loss"), float) and math.isfinite(r["loss"])]
    # the median: an evaluation or a pause between two attempts is not the speed of a step
    paces = [
        (later["time"] - earlier["time"]) / (later["step"] - earlier["step"])
        for earlier, later in itertools.pairwise(records)
        if later["step"] > earlier["step"]
    ]
    left = duration(statistics.median(paces) * (total - step)) if state is State.running and total and paces else ""
    return f"{step}/{total or '?'}", number(losses[-1]) if losses else "", left


def last_records(path: Path) -> list[dict[str, Any]]:
    """The latest training records of a metrics.jsonl, from its end; a line that is cut short is left out."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [record for line in lines if (record := parsed(line)) and record["split"] == "train"]


if __name__ == "__main__":
    sys.exit(main())
