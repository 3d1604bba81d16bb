"""What has become of a run: read from its result.json, and judged alive or not by its process, job or heartbeat."""

import json
import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

RESULT = "result.json"
STALE_SECONDS = 600.0  # a heartbeat older than this is a dead run's, where nothing better can be known
CLOCK_SECONDS = 5.0  # what two clocks of one machine may differ by
Queue = Mapping[str, str] | None
PENDING = frozenset(("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"))
ENDED = ("completed", "failed", "interrupted", "waiting", "set aside")


class State(StrEnum):
    """What has become of a run.

    missing: never started. queued: Slurm holds its job back. waiting: a race's point, saved, until the others have come
    as far; set aside: it need not go on. interrupted: it was asked to stop and saved.
    killed: its result.json says running, but nothing runs it any more; or its job left Slurm and there is none.
    """

    missing = "missing"
    queued = "queued"
    running = "running"
    waiting = "waiting"
    completed = "completed"
    set_aside = "set aside"
    failed = "failed"
    interrupted = "interrupted"
    killed = "killed"


FINE = (State.completed, State.set_aside)  # where nothing is missing and nothing went wrong


def read_result(folder: Path) -> dict[str, Any] | None:
    """What result.json of a run's folder says, None where there is none.

    A file that cannot be read makes a failed run of it, with the reason as its error: nobody knows what it came to.
    """
    path = folder / RESULT
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["status"] not in ("running", *ENDED):
            raise ValueError(f"status {result['status']!r}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        return {"status": "failed", "error": f"{path.name} cannot be read: {type(error).__name__}: {error}"}
    return result


def slurm_queue() -> dict[str, str] | None:
    """The user's jobs that Slurm has not ended yet, job id (`123_0` for an array's task) to state; None where squeue
    is not there or fails."""
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())


def own_job_id() -> str | None:
    """The Slurm job this process belongs to, `123_0` for an array's task; None outside Slurm."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def requeued_from(result: Mapping[str, Any]) -> bool:
    """Whether a result is of an earlier part of this process's Slurm job, which Slurm has started again since."""
    own = own_job_id()
    return own is not None and result.get("job_id") == own and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def state_of(folder: Path, job_id: str | None, queue: Queue) -> State:
    """What has become of the point in a folder. job_id: the job it was last submitted as; queue: see slurm_queue."""
    result = read_result(folder)
    if result and result["status"] == "completed":
        return State.completed
    written_by = result.get("job_id") if result else None
    job = (queue or {}).get(job_id or written_by or "")
    if job in PENDING:
        return State.queued
    if job and (result is None or (job_id and job_id != written_by)):  # its job began, and has not come to write yet
        return State.running
    if result is None:
        return State.missing if job_id is None or queue is None else State.killed
    if result["status"] == "running":
        return State.running if alive(result, queue) else State.killed
    return State(result["status"])


def alive(result: Mapping[str, Any], queue: Queue) -> bool:
    """Whether something still runs a run whose result.json says running.

    Its process is looked for where this is its machine; else its Slurm job, else the age of its heartbeat decides. Of
    the job that asks it is not said that it lives: what it left on another machine before it was requeued is dead.
    """
    heartbeat = result.get("heartbeat") or 0.0
    if result.get("host") == socket.gethostname():
        started = process_started(int(result.get("pid") or 0))
        return started is not None and started <= heartbeat + CLOCK_SECONDS  # else the number was given away again
    if requeued_from(result):
        return False
    job_id = result.get("job_id")
    if job_id and job_id != own_job_id() and queue is not None:
        return job_id in queue
    return time.time() - heartbeat <= STALE_SECONDS


def how_many(states: Iterable[State]) -> str:
    """How many are in which state, in words: `1 running, 2 completed`."""
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def process_started(pid: int) -> float | None:
    """When a process of this machine began, in seconds since 1970; None where it has ended."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:  # it has ended, or is none of ours
        return None
