"""The ranks of one run: where each stands, how they meet, how they are started on this machine and ended together."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from orpo_exp.signals import STOP_SIGNALS, handled

# How long the other ranks may take to end by themselves once one has failed, in seconds.
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Place:
    """A rank among the ranks of a run. `port`: where the ranks started here meet; None alone or under torchrun."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    port: int | None = None


def torchrun_place(environment: Mapping[str, str]) -> Place | None:
    """This process's place where torchrun (or another launcher that sets its variables) started it."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    return Place(int(environment["RANK"]), int(environment.get("LOCAL_RANK", "0")), int(environment["WORLD_SIZE"]))


def share_cores(ranks: int) -> None:
    """Give each of several ranks on one machine its share of the cores, unless the user has decided."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def start_ranks(count: int, entry: Callable[..., int], *arguments: Any) -> int:
    """Run `entry(place, *arguments)` in `count` processes and return the first exit code that is not 0, or 0.

    The signals that end a run are handed on to every rank, once each. When a rank fails, the others have a grace
    period to end by themselves before they are ended; after a signal the main rank may take its time, until a second
    SIGINT. When this process dies, the ranks end as well.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    ranks: list[BaseProcess] = [
        context.Process(target=_rank, args=(Place(i, i, count, store.port), entry, *arguments)) for i in range(count)
    ]
    try:
        for process in ranks:
            process.start()
        with handed_on(ranks) as received:
            return _wait(ranks, received)
    finally:  # none is left alone where waiting for them was cut short
        for process in ranks:
            if process.is_alive():
                process.kill()


def end_with_parent() -> None:
    """Have this process end as by SIGTERM when the one that started it by multiprocessing dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_it() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_it, name="end with parent", daemon=True).start()


def _rank(place: Place, entry: Callable[..., int], *arguments: Any) -> None:
    os.setpgrp()  # Ctrl-C reaches the ranks through their parent alone, and so exactly once
    end_with_parent()
    share_cores(place.world_size)
    sys.exit(entry(place, *arguments))


def _wait(ranks: list[BaseProcess], received: list[int]) -> int:
    code = 0
    deadline: float | None = None
    while running := [p for p in ranks if p.is_alive()]:
        wait([p.sentinel for p in running], timeout=0.5)
        code = code or next((p.exitcode for p in ranks if p.exitcode), 0)
        stopped = code - 128 in STOP_SIGNALS and received.count(signal.SIGINT) < 2
        if code and deadline is None and not (stopped and ranks[0].is_alive()):
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for process in running:
                process.kill()
    code = code or next((p.exitcode for p in ranks if p.exitcode), 0)
    return shell_code(code)


@contextlib.contextmanager
def handed_on(processes: Iterable[BaseProcess]) -> Iterator[list[int]]:
    """Hand the signals that end a run on to processes for the time of the block, to those that `processes` holds then;
    the list holds what has come."""
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in list(processes):
            send(process, number)

    with handled(hand_on):
        yield received


def send(process: BaseProcess, number: int) -> None:
    """Send a signal to a process, which may have ended."""
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def shell_code(code: int) -> int:
    """An exit code in the shell's numbering: 128 + n for a process that signal n killed."""
    return 128 - code if code < 0 else code
