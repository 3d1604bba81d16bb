"""The process that a sweep's points are forked from. It imports once what each of them needs.

It is clean when it forks: no pool of threads, no CUDA, no terminal. (pyarrow's allocator has a thread of its own, which
minds forks by itself.)
"""

import importlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from orpo_exp.launchers.job import Job
from orpo_exp.plugins import Place
from orpo_exp.plugins.colossal import colossalai_imported
from orpo_exp.plugins.processes import end_with_parent

SERVER = "ORPO_EXP_FORK_SERVER"  # the variable by which multiprocessing's fork server finds out that it is this one
OF_THE_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # what it sends to all processes in it
PRELOADED = (
    "orpo_exp.experiment",
    "orpo_exp.tracking.plots",
    "orpo_exp.sweeps.plots",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",  # the presets' model, and what all causal LMs share
    "datasets",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "torch.utils.tensorboard",
    "scipy.stats",
    "rich.live",
    "colossalai.booster.plugin",
)


def preload() -> None:
    """Leave the terminal, then import. What goes wrong is still said on standard error."""
    os.setsid()
    redirect(os.open(os.devnull, os.O_RDWR), 0, 1)
    import_all()
    assert not torch.cuda.is_initialized(), "what is forked from a process that uses a GPU cannot use it"
    redirect(os.open(os.devnull, os.O_RDWR), 2)


def import_all() -> None:
    """Import what every point needs."""
    with colossalai_imported():
        for module in PRELOADED:
            importlib.import_module(module)


def run_point(job: Job, ranks: int, environment: Mapping[str, str], log: Path) -> None:
    """In a process forked for it: run a point in a session, an environment and a log of its own.

    So Ctrl-C reaches it through the launcher alone, and exactly once. Without its launcher, it saves and stops.
    """
    redirect(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 1, 2)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_THE_TERMINAL)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"].partition(",")[0]))
    end_with_parent()
    sys.exit(job.run(Place(), ranks))


def redirect(file: int, *streams: int) -> None:
    """Have standard streams lead to an open file."""
    for stream in streams:
        os.dup2(file, stream)
    if file not in streams:
        os.close(file)


if os.environ.pop(SERVER, None):
    preload()
