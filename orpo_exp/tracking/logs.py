"""Messages: on the screen, in run.log, which keeps what the screen said, and in the other ranks' files."""

import errno
import logging
import os
import re
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TextIO

from rich.console import Console
from rich.text import Text
from typing_extensions import override

MARKS = {logging.WARNING: ("warning: ", "yellow"), logging.ERROR: ("error: ", "bold red")}
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen(Console):
    """A console that falls silent where its reader has gone: a training does not end because `| tee` has, nor because a
    terminal has closed."""

    @override
    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:  # what writing to a terminal that has closed comes to
                raise
            self.on_broken_pipe()

    @override
    def on_broken_pipe(self) -> None:
        self.quiet = True
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # else Python complains at its end


CONSOLE = Screen(highlight=False)  # one for the pages and the log, so that messages appear above the live bar
ROOT = logging.getLogger("orpo_exp")
PAGES = logging.getLogger("orpo_exp.pages")  # what was printed already and only the file still has to hear


class PlainFormatter(logging.Formatter):
    """Leaves control characters out: a message may quote somebody's data."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return CONTROL.sub("", super().format(record))


class ScreenHandler(logging.Handler):
    """Prints messages on the console, warnings and errors marked as such."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if record.name == PAGES.name:
            return
        try:
            mark = MARKS.get(min(record.levelno, logging.ERROR), ("", ""))
            CONSOLE.print(Text.assemble(mark, CONTROL.sub("", self.format(record))), soft_wrap=True)
        except Exception:
            self.handleError(record)


class FailureHandler(logging.StreamHandler[TextIO]):
    """Says on standard error what made another rank fail; where is in its file, for seven that lose an eighth would
    fill the screen."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.setLevel(logging.ERROR)
        self.addFilter(lambda record: bool(record.exc_info))
        self._rank = rank

    @override
    def format(self, record: logging.LogRecord) -> str:
        assert record.exc_info
        what = "".join(traceback.format_exception_only(record.exc_info[1])).strip()
        return CONTROL.sub("", f"rank {self._rank} failed: {what}")


class Messages(ExitStack):
    """Where the messages of this process go, inside the `with` block; afterwards all is as it was.

    The main rank has the console (from INFO on) and run.log (everything, with times). Another rank has rank-N.log, and
    standard error for what made it fail: the main rank may only see that it has gone. There is no file before `keep`.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    @override
    def __enter__(self) -> Self:
        self.callback(ROOT.setLevel, ROOT.level)
        self.callback(setattr, ROOT, "propagate", ROOT.propagate)
        ROOT.setLevel(logging.DEBUG)
        ROOT.propagate = False
        self._add(FailureHandler(self._rank) if self._rank else ScreenHandler(logging.INFO))
        return self

    def keep(self, folder: Path) -> None:
        """From now on the messages go to a file in the run's folder as well."""
        name = f"rank-{self._rank}.log" if self._rank else "run.log"
        file = logging.FileHandler(folder / name, encoding="utf-8")
        file.setFormatter(PlainFormatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._add(file)

    def _add(self, handler: logging.Handler) -> None:
        ROOT.addHandler(handler)
        self.callback(handler.close)
        self.callback(ROOT.removeHandler, handler)
