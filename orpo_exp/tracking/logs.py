"""Messages: on the screen, in run.log, which keeps what the screen said, and in the other ranks' files."""

import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

MARKS = {logging.WARNING: ("warning: ", "yellow"), logging.ERROR: ("error: ", "bold red")}
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen(Console):
    """A console that falls silent where its reader has gone: a training does not end because `| tee` has."""

    def on_broken_pipe(self) -> None:
        """See rich."""
        self.quiet = True
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # else Python complains at its end


CONSOLE = Screen(highlight=False)  # one for the pages and the log, so that messages appear above the live bar
ROOT = logging.getLogger("orpo_exp")
PAGES = logging.getLogger("orpo_exp.pages")  # what was printed already and only the file still has to hear


class PlainFormatter(logging.Formatter):
    """Leaves control characters out: a message may quote somebody's data."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return CONTROL.sub("", super().format(record))


class ScreenHandler(logging.Handler):
    """Prints messages on the console, warnings and errors marked as such."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        if record.name == PAGES.name:
            return
        try:
            mark = MARKS.get(min(record.levelno, logging.ERROR), ("", ""))
            CONSOLE.print(Text.assemble(mark, self.format(record)), soft_wrap=True)
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

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Handler."""
        assert record.exc_info
        what = "".join(traceback.format_exception_only(record.exc_info[1])).strip()
        return CONTROL.sub("", f"rank {self._rank} failed: {what}")


_handlers: list[logging.Handler] = []


def setup_logging(folder: Path | None, main: bool, rank: int) -> None:
    """Say where the messages of this process go; a later call replaces an earlier one.

    The main rank has the console (from INFO on) and run.log (everything, with times). Another rank has rank-N.log, and
    standard error for what made it fail: the main rank may only see that it has gone. Without a folder there is no file
    yet.
    """
    while _handlers:
        handler = _handlers.pop()
        ROOT.removeHandler(handler)
        handler.close()
    ROOT.setLevel(logging.DEBUG)
    ROOT.propagate = False
    if main:
        screen = ScreenHandler(logging.INFO)
        screen.setFormatter(PlainFormatter())
        _handlers.append(screen)
    else:
        _handlers.append(FailureHandler(rank))
    if folder is not None:
        file = logging.FileHandler(folder / ("run.log" if main else f"rank-{rank}.log"), encoding="utf-8")
        file.setFormatter(PlainFormatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
        _handlers.append(file)
    for handler in _handlers:
        ROOT.addHandler(handler)
