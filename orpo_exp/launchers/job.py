"""What runs where a launcher sent it: in a process of its own on this machine, or in each task of a Slurm job."""

import logging
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from orpo_exp.plugins import Place, start_ranks
from orpo_exp.registry import import_outside
from orpo_exp.runs.order import RunOrder
from orpo_exp.sweeps.summary import point_ended
from orpo_exp.sweeps.turns import Turn

log = logging.getLogger(__name__)

# Runs one rank of a run and returns its exit code. The command line hands it over: this room knows nothing of training.
Entry = Callable[[Place, RunOrder], int]

# How long the other ranks wait for the main rank to end the job, once the run has failed.
FAILED_SECONDS = 60.0
# How long a run that a signal stopped waits for Slurm to end its job: more than any partition's GraceTime.
STOPPED_SECONDS = 900.0


class Job:
    """A run as it travels, as the turn that it is to be run in. sweep: the folder of the sweep whose point it is, None
    for a single run.

    What is inside may be made of components that lie outside the package (ORPO_EXP_PATH): it stays packed until these
    have been imported.
    """

    def __init__(self, entry: Entry, turn: Turn, sweep: Path | None) -> None:
        self._outside = os.environ.get("ORPO_EXP_PATH", "")
        self._packed = pickle.dumps((entry, turn))
        self._sweep = sweep

    def run(self, place: Place, ranks: int = 1) -> int:
        """Run one rank, or so many on this machine, and return the exit code: 0 where nothing is left to be run. Once a
        run has ended, its sweep's summary is rebuilt: one that cannot be written makes no failed run of one that has
        completed; one stopped will go on."""
        os.environ["ORPO_EXP_PATH"] = self._outside
        import_outside()
        entry, turn = pickle.loads(self._packed)
        if (order := turn.order()) is None:
            return 0
        code: int = entry(place, order) if ranks == 1 else start_ranks(ranks, entry, order)
        if self._sweep is not None and place.rank == 0 and code <= 128:
            try:
                turn.ended()
                point_ended(self._sweep)
            except Exception:
                log.exception("the sweep's summary could not be written")
        return code


class SlurmTask(Job):
    """What submitit calls in each task of a Slurm job."""

    def __call__(self) -> None:
        """Run one rank. A run that failed raises, so that its job is FAILED; one that was warned goes back into the
        queue, where it will resume."""
        place = slurm_place()
        # as many threads as the task has cores, which not every Slurm enforces, unless the user has decided
        if "OMP_NUM_THREADS" not in os.environ and "SLURM_CPUS_PER_TASK" in os.environ:
            torch.set_num_threads(int(os.environ["SLURM_CPUS_PER_TASK"]))
        code = self.run(place)
        if code == 0:
            return
        if place.rank == 0 and code == 128 + signal.SIGUSR2:
            os.kill(os.getpid(), signal.SIGUSR2)  # submitit's handler, in place again, requeues the job and exits
        elif code > 128:  # cancelled or preempted: Slurm requeues a job that it has to end, not one that has ended
            time.sleep(STOPPED_SECONDS)
        elif place.rank > 0:  # a task that fails ends the others: the main rank has to write down what happened
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(FAILED_SECONDS)
        raise RuntimeError(f"the run ended with exit code {code}; its run.log says why")

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same again, for a run finds its checkpoints by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def slurm_place() -> Place:
    """This task's place among the job's tasks. Several are told where to meet by torchrun's variables."""
    from submitit.helpers import TorchDistributedEnvironment

    found = TorchDistributedEnvironment()
    if found.world_size > 1:
        try:
            socket.getaddrinfo(found.master_addr, None)
        except OSError:  # Slurm's name for a node need not be one that the network knows
            found.master_addr = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
        # every rank sees all GPUs of its node, as under torchrun, and takes its own by local rank
        found.export(set_cuda_visible_devices=False, overwrite=True)
    return Place(found.rank, found.local_rank, found.world_size)
