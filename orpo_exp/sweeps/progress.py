"""What is seen of a sweep while it runs: a live table and curves in a terminal, elsewhere a line for each change."""

import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from orpo_exp.runs.states import FINE, State, slurm_queue, state_of
from orpo_exp.sweeps.looks import Looks
from orpo_exp.sweeps.points import current
from orpo_exp.sweeps.results import points_of
from orpo_exp.sweeps.status import status_table
from orpo_exp.sweeps.sweep_file import read_sweep
from orpo_exp.tracking.logs import CONSOLE

SHOW_SECONDS = 2.0  # between two looks at the points' folders
QUEUE_SECONDS = 10.0  # between two questions to Slurm
QUIET_SECONDS = 30.0  # without a point that runs, after which no more is expected to begin
AROUND = 5  # rows of the table's head, the counts, and between them
LEAST = 5  # of the table's other rows, before curves get any
GOING_ON = (State.queued, State.running)
NOT_YET = {State.missing, State.waiting}  # what may still be begun, or gone on with


class Progress:
    """Shows how the points of a sweep stand, as often as is sensible, however often it is asked to."""

    def __init__(self, folder: Path, metric: str | None = None) -> None:
        """metric: whose curves are shown; see Looks."""
        self._folder = folder
        self._looks = Looks(folder, metric)
        self._states: dict[str, State] = {}
        self._next = 0.0
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if sys.stdout.isatty():
            self._live = Live(console=CONSOLE, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._next = 0.0
            self.show()
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """Bring what is shown up to date."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SHOW_SECONDS
        if self._live:
            self._live.update(self._view(), refresh=True)
            return
        for name, state in (states(self._folder) or self._states).items():
            if self._states.get(name, State.missing) is not state:
                CONSOLE.print(Text(f"{time.strftime('%H:%M:%S')} {name}: {state}"), soft_wrap=True)
            self._states[name] = state

    def _view(self) -> RenderableType:
        """As much as the terminal has room for: what is below its last row would not be seen."""
        curves = self._looks.drawn(CONSOLE.width, CONSOLE.height - AROUND - LEAST)
        drawn = len(curves.plain.splitlines()) if curves else 0
        table = status_table(self._folder, max(LEAST, CONSOLE.height - AROUND - drawn))
        return Group(table, "", curves) if curves else table


def states(folder: Path) -> dict[str, State] | None:
    """The state of each point of a sweep, by its folder's name; None where Slurm is to be asked and does not answer."""
    sweep = read_sweep(folder)
    points = points_of(folder, sweep)
    queue = slurm_queue() if sweep and sweep.by_slurm else {}
    if queue is None:
        return None
    waiting = dict.fromkeys(sweep.not_begun(queue) if sweep else (), State.queued)
    return {point.folder: current(folder, point, queue) for point in points} | waiting


def follow(folder: Path, metric: str | None = None) -> int:
    """Show a sweep that is run elsewhere until none of its points is queued or running, and none that is missing or
    waits is begun any more: 0 if all have completed or are set aside, else 1; Ctrl-C ends the showing alone: 130.
    metric: see Looks.

    Raises Refused where the folder holds no runs.
    """
    try:
        with Progress(folder, metric) as progress:
            quiet_since = time.monotonic()
            while True:
                found = states(folder)
                if found is None or any(state in GOING_ON for state in found.values()):
                    quiet_since = time.monotonic()
                elif NOT_YET.isdisjoint(found.values()) or time.monotonic() > quiet_since + QUIET_SECONDS:
                    return int(any(state not in FINE for state in found.values()))
                progress.show()
                sweep = read_sweep(folder)
                time.sleep(QUEUE_SECONDS if sweep and sweep.by_slurm else SHOW_SECONDS)
    except KeyboardInterrupt:
        print("The sweep goes on; the table alone was left.", file=sys.stderr)
        return 130


def follow_run(folder: Path, job_id: str) -> int:
    """Wait for a single submitted run to end, telling each change: 0 if it has completed, else 1; Ctrl-C: 130."""
    shown = State.missing
    try:
        while True:
            queue = slurm_queue()
            state = shown if queue is None else state_of(folder, job_id, queue)
            if state is not shown:
                CONSOLE.print(Text(f"{time.strftime('%H:%M:%S')} {folder.name}: {state}"), soft_wrap=True)
            if queue is not None and state not in GOING_ON and job_id not in queue:
                return int(state is not State.completed)
            shown = state
            time.sleep(QUEUE_SECONDS)
    except KeyboardInterrupt:
        print("The job goes on; the waiting alone was left.", file=sys.stderr)
        return 130
