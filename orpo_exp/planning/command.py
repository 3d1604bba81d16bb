"""What the command line does where a plan is all that is asked for."""

import multiprocessing
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

from rich.console import Console, RenderableType

from orpo_exp.experiment import COMPLETED, FAILED, REFUSED, STOPPED
from orpo_exp.launchers import Elsewhere, Launcher
from orpo_exp.planning import planner
from orpo_exp.planning.figures import Figures
from orpo_exp.planning.page import page, sweep_page
from orpo_exp.plugins import Place
from orpo_exp.plugins.precision import arithmetic_as_before
from orpo_exp.plugins.ranks import left_afterwards
from orpo_exp.runs.order import RunOrder
from orpo_exp.schema import ConfigError, Refused
from orpo_exp.user_errors import refusal

WIDE = 120


def plan_run(order: RunOrder, place: Place | None, launcher: Launcher) -> int:
    """Plan one run and print the page. 0; 1 where it does not fit, or Slurm would never run it; 2 refused.

    place: of a rank that torchrun has started.
    """
    if place is not None and not launcher.foreground:
        do = "Start it without torchrun: a job has a task for each rank."
        raise ConfigError("hydra/launcher", "another than local, under torchrun", "local", do)
    figures, code = planned(order, place, launcher)
    if figures is None:
        return code
    findings = launcher.findings()
    _print(page(figures, findings, launcher.time_limit()))
    return judged([figures], all(of.fine for of in findings))


def plan_sweep(orders: Sequence[RunOrder], launcher: Launcher) -> int:
    """Plan the points that would be run, one after another, and print a line for each; the codes of `plan_run`."""
    found: dict[str, Figures] = {}
    for order in orders:
        figures, code = planned(order, None, launcher)
        if figures is None:
            return code
        found[order.folder.name.rpartition("_")[0]] = figures
    if not found:
        _print("Every point has completed, or is running: there is nothing to plan.")
        return COMPLETED
    findings, at_a_time = launcher.findings(), min(launcher.at_a_time(orders), len(orders))
    if launcher.foreground:
        found = {name: side_by_side(of, at_a_time, launcher.on_a_gpu()) for name, of in found.items()}
    _print(sweep_page(found, at_a_time, findings, launcher.time_limit()))
    return judged(list(found.values()), all(of.fine for of in findings))


def side_by_side(figures: Figures, points: int, on_a_gpu: int) -> Figures:
    """A point that shares the memory of a CPU or of a GPU with others."""
    memory = figures.memory
    key, sharing = ("parallel", points) if memory.device == "cpu" else ("per_gpu", min(points, on_a_gpu))
    if sharing == 1:
        return figures
    shared = replace(memory, ranks=sharing * memory.ranks)
    note = f"{sharing} points at a time do not fit; hydra.launcher.{key} says how many there are."
    return replace(figures, memory=shared, notes=(*figures.notes, note) if shared.fits is False else figures.notes)


def judged(figures: Sequence[Figures], fine: bool) -> int:
    """The exit code that says whether all can be run."""
    return COMPLETED if fine and not any(of.memory.fits is False for of in figures) else FAILED


def planned(order: RunOrder, place: Place | None, launcher: Launcher) -> tuple[Figures | None, int]:
    """The figures of a run, on the main rank alone, and the exit code of what went wrong."""
    receive, send = multiprocessing.Pipe(duplex=False)
    elsewhere = launcher.elsewhere()
    entry = partial(plan_rank, send, elsewhere)
    with receive, send:
        if elsewhere is not None:
            code = entry(Place(), order)
        else:
            code = launcher.run(order, entry) if place is None else entry(place, order)
        return (receive.recv() if receive.poll() else None), code


def plan_rank(send: "Connection[Figures, Figures]", elsewhere: Elsewhere | None, place: Place, order: RunOrder) -> int:
    """Plan on one rank; the main one sends what it comes to."""
    with left_afterwards(), arithmetic_as_before():
        try:
            figures = planner.here(order, place) if elsewhere is None else planner.elsewhere(order, elsewhere)
        except Refused as refused:
            if place.rank == 0:
                print(refusal(refused), file=sys.stderr)
            return REFUSED
        except KeyboardInterrupt:
            return STOPPED + signal.SIGINT
    if place.rank == 0:
        send.send(figures)
    return COMPLETED


def _print(what: RenderableType) -> None:
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(what)
