"""The ranks of one run: where each stands, how they meet, how they are started on this machine and ended together."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

# How long the other ranks may take to end by themselves once one has failed, in seconds.
GRACE_SECONDS = 10.0
# How long ranks wait for one another: the main one may write a large model meanwhile. NCCL's own limit is 10 minutes.
PATIENCE = timedelta(hours=1)
# Ctrl-C; what `kill`, Slurm's scancel and preemption send; what is asked of Slurm as a warning before the time is up
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


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


def join_process_group(place: Place, backend: str) -> None:
    """Meet the other ranks. A rank that is alone opens no port."""
    if place.world_size == 1 and place.port is None and "MASTER_ADDR" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    elif place.port is not None:
        store = dist.TCPStore("127.0.0.1", place.port, is_master=False)
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size, timeout=PATIENCE)
    else:
        dist.init_process_group(
            backend, init_method="env://", rank=place.rank, world_size=place.world_size, timeout=PATIENCE
        )


def share_cores(ranks: int) -> None:
    """Give each of several ranks on one machine its share of the cores, unless the user has decided."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def start_ranks(count: int, entry: Callable[..., int], *arguments: Any) -> int:
    """Run `entry(place, *arguments)` in `count` processes and return the first exit code that is not 0, or 0.

    SIGINT, SIGTERM and SIGUSR2 are handed on to every rank, once each. When a rank fails, the others have a grace
    period to end by themselves before they are ended; after a signal the main rank may take its time, until a second
    SIGINT. When this process dies, the ranks are told by the kernel.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    ranks: list[BaseProcess] = [
        context.Process(target=_rank, args=(Place(i, i, count, store.port), entry, *arguments)) for i in range(count)
    ]
    for process in ranks:
        process.start()
    with _handed_on(ranks) as received:
        code = _wait(ranks, received)
    return code


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies, where the kernel can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


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
    return 128 - code if code < 0 else code  # killed by signal -code, in the shell's numbering


@contextlib.contextmanager
def _handed_on(ranks: list[BaseProcess]) -> Iterator[list[int]]:
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in ranks:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    former = {number: signal.signal(number, hand_on) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
