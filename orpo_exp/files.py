"""Files that a reader never sees half of."""

import os
import socket
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a file beside and put it in place at once; other processes may be doing the same."""
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
