"""What was worked out of data once and is kept on disk for the next start: folders by key, Arrow files in them."""

import hashlib
import json
import mmap
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_exp.columns import column
from orpo_exp.files import locked
from orpo_exp.schema import ConfigError

if TYPE_CHECKING:
    import pyarrow

AT_ONCE = 1000  # pairs that are worked on, written and read together
ABOUT = "about.json"
READS = 4096  # after so many of them what was read of a file is let go


class Kept:
    """Where things are kept: a folder, which may be removed at any time but while it is being filled. None: `data` in
    that of the environment's ORPO_EXP_CACHE, or in ~/.cache/orpo_exp."""

    def __init__(self, folder: str | None) -> None:
        usual = Path(os.environ.get("ORPO_EXP_CACHE", "~/.cache/orpo_exp"), "data")
        self.root = Path(folder or usual).expanduser()

    def make(self, kind: str, facts: Any, fill: Callable[[Path], None]) -> Path:
        """The folder of this kind for these facts, filled where it is not there yet: by one of the processes that ask,
        for which the others wait.

        Raises ConfigError where nothing can be written.
        """
        folder = self.root / f"{kind}-{key_of(facts)}"
        if folder.is_dir():
            return folder
        beside = self.root / f".{folder.name}.{socket.gethostname()}.{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with locked(self.root / f".{folder.name}.lock"):
                if not folder.is_dir():
                    self._clear(folder.name)
                    beside.mkdir()
                    fill(beside)
                    beside.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # else another machine has made it, where locks do not hold
                allowed = "a folder that can be written, with room for the data"
                do = f"{error.strerror}: name another one."
                raise ConfigError("data.cache", str(self.root), allowed, do) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return folder

    def _clear(self, name: str) -> None:
        """Remove what processes of this machine that are no more left half done."""
        import psutil

        for left in self.root.glob(f".{name}.{socket.gethostname()}.*"):
            if not psutil.pid_exists(int(left.suffix[1:])):
                shutil.rmtree(left, ignore_errors=True)


def key_of(facts: Any) -> str:
    """16 hexadecimal digits for plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def write(path: Path, schema: "pyarrow.Schema", batches: Iterable[Mapping[str, Any]]) -> None:
    """Write columns, some rows at a time, as an Arrow file."""
    import pyarrow

    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as file:
        for batch in batches:
            columns = [column(batch[field.name], field.type) for field in schema]
            file.write_batch(pyarrow.record_batch(columns, schema))


class Mapped:
    """An Arrow file, its batches read by mapping: what nobody looks at takes no memory, and what was looked at is let
    go from time to time, else every pair ever read would stay."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pyarrow.ipc.open_file(pyarrow.py_buffer(self._map))
            self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
            raise ConfigError("data.cache", str(path.parent), "what was written there", "Delete it.") from error
        self._reads = 0

    def read(self) -> None:
        """Count a read."""
        self._reads += 1
        if self._reads % READS == 0:
            self.let_go()

    def let_go(self) -> None:
        """Keep nothing of it in memory; it is read again where it is looked at again."""
        self._map.madvise(mmap.MADV_DONTNEED)
