"""Files that a reader never sees half of, and locks for those that several processes change."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


def write_atomically(path: Path, text: str) -> None:
    """Write a file beside and put it in place at once; other processes may be doing the same."""
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Hold a lock, a file of its own that stays, waiting for whoever has it, on other machines too."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # every file is still replaced at once; the last writer's stay
            log.warning("%s cannot be locked (%s): two may write at the same time", lock, error)
        yield
