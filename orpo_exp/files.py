"""Files that a reader never sees half of, and locks for those that several processes change."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Write to the path that is given here; it is put in place at once. Other processes may be doing the same."""
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    yield beside
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


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file at once."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
