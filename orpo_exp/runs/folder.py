"""A run's folder: the files that people and scripts find there later, and what result.json says."""

import json
import logging
import os
import platform
import socket
import subprocess
import threading
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from orpo_exp.config import declared_metrics, resolved
from orpo_exp.files import write_atomically
from orpo_exp.metrics import to_json
from orpo_exp.runs.order import RunOrder
from orpo_exp.runs.states import RESULT, own_job_id, read_result, requeued_from

log = logging.getLogger(__name__)

PACKAGES = ("orpo-exp", "torch", "colossalai", "transformers", "datasets", "hydra-core")
HEARTBEAT_SECONDS = 10.0


class RunFolder:
    """Writes config.yaml and result.json; the main rank alone has one.

    `result` holds what result.json says; every write replaces the file at once, so that a reader never sees half of it.
    From `begin` to `end` a thread writes it every ten seconds, whatever the run does meanwhile: its `heartbeat` tells
    others that it lives. A disk that fails then is reported once and ends nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.result: dict[str, Any] = {}
        self._started = time.time()  # by `begin` set back by what earlier attempts took
        self._lock = threading.Lock()  # of `result` and the file
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def begin(self, order: RunOrder, world_size: int) -> None:
        """Make the folder and say that the run is running; of an earlier attempt, time and requeues are counted on."""
        config = order.config
        self.path.mkdir(parents=True, exist_ok=True)
        former = read_result(self.path) or {}
        self._started -= former.get("wall_time_seconds", 0.0)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved(config))))
        self.result = {
            "status": "running",
            "error": None,
            "config_hash": config.config_hash,
            "overrides": order.overrides,
            "seed": config.seed,
            "git": git_state(),
            "versions": {"python": platform.python_version(), **package_versions()},
            "hardware": hardware(),
            "world_size": world_size,
            "steps": 0,
            "total_steps": None,
            "eval": {},
            "test": {},
            "pairs_per_second": None,
            "tokens_per_second": None,
            "peak_memory_bytes": None,
            "wall_time_seconds": 0.0,
            "requeues": former.get("requeues", 0) + requeued_from(former),
            "heartbeat": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job_id": own_job_id(),
            "settings": config.numeric(),
            "metrics": to_json(declared_metrics(config)),
        }
        self._write()
        self._beating.start()

    def note(self, **values: Any) -> None:
        """Further values for result.json, on disk with the next heartbeat."""
        with self._lock:
            self.result |= values

    def end(self, status: str, error: str | None = None) -> None:
        """Say how the run ended: completed, failed or interrupted. Raises OSError where it cannot be written."""
        self._ended.set()
        if self._beating.ident is not None:
            self._beating.join()
        self.note(status=status, error=error)
        self._write()

    def _beat(self) -> None:
        failing = False
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                self._write()
                failing = False
            except OSError as error:
                if not failing:
                    log.warning("%s could not be written, the run goes on: %s", self.path / RESULT, error)
                failing = True

    def _write(self) -> None:
        with self._lock:
            now = time.time()
            self.result |= {"heartbeat": now, "wall_time_seconds": now - self._started}
            write_atomically(self.path / RESULT, json.dumps(self.result, indent=2) + "\n")


def set_aside(folder: Path, why: str) -> bool:
    """Say in result.json of a run that has ended before its last step that it need not go on; whether there is one."""
    result = read_result(folder)
    if result is None or result["status"] == "completed":
        return False
    write_atomically(folder / RESULT, json.dumps({**result, "status": "set aside", "error": why}, indent=2) + "\n")
    return True


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package lies in, and whether it has changes; None outside a checkout."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that decide a run's numbers."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def hardware() -> dict[str, Any]:
    """What the run's machine is: cores this process may use, memory in bytes, GPUs by name."""
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
