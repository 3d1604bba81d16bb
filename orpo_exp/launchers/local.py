"""Runs on this machine: a single run in the foreground, a sweep's points side by side."""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from rich.text import Text
from typing_extensions import override

from orpo_exp.launchers import server
from orpo_exp.launchers.base import LAUNCHERS, Launcher, LauncherConfig
from orpo_exp.launchers.job import Entry, Job
from orpo_exp.plugins import Place, start_ranks
from orpo_exp.plugins.processes import handed_on, send, shell_code
from orpo_exp.runs.order import RunOrder
from orpo_exp.runs.states import read_result
from orpo_exp.schema import ConfigError, setting
from orpo_exp.sweeps.progress import Progress
from orpo_exp.sweeps.turns import Stages, Turn
from orpo_exp.tracking.logs import CONSOLE

MOST_ON_CPU = 8  # points at a time, where cores abound: each has memory and start-up of its own
POLL_SECONDS = 0.2
OUT_OF_MEMORY = "out of memory"  # in what PyTorch says when a GPU's does not suffice
# What the fork server is started with: it asks for GPUs without touching them, and NumPy makes no threads.
CLEAN = {server.SERVER: "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Slot:
    """What one point at a time may use. gpus: as CUDA_VISIBLE_DEVICES names them; cores: how many."""

    gpus: tuple[str, ...]
    cores: int

    def ranks(self, order: RunOrder) -> int:
        """As many ranks as are asked for, else one for each GPU, else one."""
        return order.config.processes or max(1, len(self.gpus))

    def environment(self, ranks: int) -> dict[str, str]:
        """This process's environment, narrowed to the slot; a number of threads that the user has set stays."""
        environment = {"OMP_NUM_THREADS": str(max(1, self.cores // ranks)), **os.environ}
        return environment | ({"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {})


@LAUNCHERS.register("local")
class Local(Launcher):
    """One process for each point, with the ranks below it, forked from a server that has imported everything once.

    Not submitit's LocalExecutor: it ends the ranks of a point one second after the first Ctrl-C, when they are saving,
    leaves the others running when one has failed, and asks for a time limit.
    """

    @dataclass
    class Config(LauncherConfig):
        """parallel: points at a time; None: as many as there are GPUs or cores for. per_gpu: those that share a GPU."""

        parallel: int | None = setting(None, ge=1)
        per_gpu: int = setting(1, ge=1)

    config: Config
    foreground = True

    @override
    def check(self, orders: Sequence[RunOrder]) -> None:
        self.slots(orders)

    @override
    def run(self, order: RunOrder, entry: Entry) -> int:
        """In this process where one rank is enough."""
        count = order.config.processes or max(1, torch.cuda.device_count())
        return entry(Place(), order) if count == 1 else start_ranks(count, entry, order)

    @override
    def sweep(self, folder: Path, stages: Stages, entry: Entry) -> int:
        """A point that fails stops no other; the worst exit code is returned.

        A signal that ends a run is handed on to the points that are running, which save and stop, and no further one
        begins.
        """
        free = self.slots([turn.like for stage in stages for turn in stage])
        running: dict[BaseProcess, tuple[Turn, RunOrder, Slot]] = {}
        ended: dict[str, int] = {}
        said = False
        logs = folder / "logs"
        logs.mkdir(exist_ok=True)
        with Progress(folder) as progress, handed_on(running) as received:
            try:
                for waiting in map(deque, stages):
                    while running or (waiting and not received):
                        while waiting and free and not received:
                            turn = waiting.popleft()
                            if (order := turn.order()) is None:
                                continue
                            slot, log = free.pop(0), logs / f"{order.folder.name}.log"
                            process = start(Job(entry, Turn(order), folder), slot, order, log)
                            running[process] = turn, order, slot
                            for number in received:  # while it was being started
                                send(process, number)
                        for process in [process for process in running if process.exitcode is not None]:
                            turn, order, slot = running.pop(process)
                            turn.ended()
                            free.append(slot)
                            ended[order.folder.name] = shell_code(process.exitcode or 0)
                        if received and not said:
                            said = True
                            CONSOLE.print("stopping: the running points save first; Ctrl-C again ends them at once")
                        progress.show()
                        time.sleep(POLL_SECONDS)
            finally:
                for process in running:  # none where all went well
                    send(process, signal.SIGTERM)
        for name, code in ended.items():
            if code and not received:
                # a path may hold what rich would take for markup
                why = f"{name} ended with exit code {code}: {logs / name}.log"
                if self.config.per_gpu > 1 and OUT_OF_MEMORY in str((read_result(folder / name) or {}).get("error")):
                    why += f". The GPU's memory did not suffice for {self.config.per_gpu} points: lower per_gpu."
                CONSOLE.print(Text(why), soft_wrap=True)
        return 128 + received[0] if received else max(ended.values(), default=0)

    @override
    def at_a_time(self, orders: Sequence[RunOrder]) -> int:
        return len(self.slots(orders))

    @override
    def on_a_gpu(self) -> int:
        return self.config.per_gpu

    def slots(self, orders: Sequence[RunOrder]) -> list[Slot]:
        """The machine's GPUs and cores, split among the points that run at a time."""
        gpus, cores = visible_gpus(), len(os.sched_getaffinity(0))
        ranks = max((order.config.processes or 1 for order in orders), default=1)
        shared = self.config.per_gpu
        if shared > 1 and (ranks > 1 or not gpus):
            allowed = "1, for there is no GPU here" if not gpus else f"1 for points of {ranks} ranks each"
            raise ConfigError(
                "hydra.launcher.per_gpu", shared, allowed, "hydra.launcher.parallel says how many at a time."
            )
        possible = max(1, shared * len(gpus) // ranks if gpus else min(cores // ranks, MOST_ON_CPU))
        parallel = self.config.parallel or possible
        size = len(gpus) // parallel
        if gpus and parallel > possible:
            allowed = f"at most {possible}: {ranks} ranks each, on {len(gpus)} GPUs"
            raise ConfigError("hydra.launcher.parallel", parallel, allowed, "Run fewer points at a time.")
        if shared > 1:
            return [Slot((gpus[i % len(gpus)],), cores // parallel) for i in range(parallel)]
        return [Slot(tuple(gpus[i * size : (i + 1) * size]), cores // parallel) for i in range(parallel)]


def start_server() -> None:
    """Start the process that points are forked from, unless it runs already.

    It gets none of the signals that the terminal sends to all: points hear of them through the launcher.
    """
    for stream in range(3):  # where one is closed, a file of the server's own would take its place
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    multiprocessing.get_context("forkserver").set_forkserver_preload([server.__name__])
    former = dict(os.environ)
    os.environ.update(CLEAN)
    resource_tracker.ensure_running()  # whose own start would unblock SIGINT
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, server.OF_THE_TERMINAL)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.clear()
        os.environ.update(former)


def start(job: Job, slot: Slot, order: RunOrder, log: Path) -> BaseProcess:
    """Start a point with the slot's environment and a log of its own."""
    ranks = slot.ranks(order)
    arguments = (job, ranks, slot.environment(ranks), log)
    process = multiprocessing.get_context("forkserver").Process(target=server.run_point, args=arguments)
    start_server()
    try:
        process.start()
    except (EOFError, ConnectionError) as error:
        raise RuntimeError("the process that points are forked from has ended; what it said stands above") from error
    return process


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(i) for i in range(count)]
