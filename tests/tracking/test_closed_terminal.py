"""What goes on writing to a terminal that has closed, as where a connection breaks: writing fails with EIO."""

import os
import subprocess
import sys

import pytest
from sweeps.builder import make_sweep

RUN = """
from orpo_exp.tracking import RunInfo, Trackers
from orpo_exp.tracking.console import ConsoleTracker
from orpo_exp.tracking.logs import Messages
messages = Messages(0).__enter__()
messages.keep(folder)
trackers = Trackers([ConsoleTracker(ConsoleTracker.Config())])
trackers.start(RunInfo(folder, "quickstart", {}, 2))
close_the_terminal()
for step in (1, 2):
    trackers.log(step, "train", {"loss": 1.0})
    trackers.log(step, "eval", {"loss": 2.0})
trackers.finish({"status": "completed", "steps": 2})
"""
SWEEP = """
from orpo_exp.sweeps.progress import Progress
with Progress(folder) as progress:
    progress.show()
    close_the_terminal()
"""


def run(code, folder, terminal):
    """Run code on a terminal of this kind that closes where it says so."""
    before = f"""
import os, signal, sys
from pathlib import Path
signal.signal(signal.SIGHUP, lambda *_: None)
folder = Path({str(folder)!r})
def close_the_terminal():
    os.write(int(sys.argv[1]), b"now")
    sys.stdin.read()
"""
    master, slave = os.openpty()
    hearing, saying = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", before + code, str(saying)],
        stdin=subprocess.PIPE, stdout=slave, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TERM": terminal}, pass_fds=[saying],
    )  # fmt: skip
    os.close(saying)
    assert os.read(hearing, 3) == b"now"
    for end in (slave, master, hearing):
        os.close(end)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, "")


@pytest.mark.parametrize("terminal", ["xterm-256color", "dumb"])
def test_a_run_goes_on_and_its_log_hears_everything(tmp_path, terminal):
    """A dumb terminal has no bar."""
    run(RUN, tmp_path, terminal)
    text = (tmp_path / "run.log").read_text()
    assert "failed" not in text
    assert "completed after 2 of 2 steps" in text


def test_what_shows_a_sweep_ends_as_if_nothing_had_happened(tmp_path):
    make_sweep(tmp_path, [{"seed": "0"}])
    run(SWEEP, tmp_path, "xterm-256color")
