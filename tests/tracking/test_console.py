import io
import logging
import os
import re
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from orpo_exp.tracking import RunInfo, console, logs
from orpo_exp.tracking.console import ConsoleTracker, duration, number
from orpo_exp.tracking.jsonl import Jsonl
from orpo_exp.tracking.logs import Messages

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
CONFIG = {
    "loss": {"lam": 0.1, "nll": "prompt_and_answer"},
    "data": {"path": "/data/" + "long/" * 30 + "pairs.jsonl", "template": "User: {}\n"},
    "lam_schedule": {},
    "tracker": {"console": {}, "wandb": {"mode": "disabled"}},
    "seed": 0,
    "choices": {"loss": "orpo", "lam_schedule": "constant"},
}
log = logging.getLogger("orpo_exp.somewhere")


@pytest.fixture
def screen(monkeypatch):
    """What the console says where it is no terminal, and narrow."""
    out = io.StringIO()
    use(monkeypatch, Console(file=out, highlight=False, width=40))
    return out


def use(monkeypatch, screen):
    for room in (console, logs):
        monkeypatch.setattr(room, "CONSOLE", screen)


def evaluation(loss):
    return {"loss": loss, "rewards/accuracy": 0.5, "only/some": 1e-7}


def simulate(folder, steps=40, status="completed"):
    with Messages(0) as messages:
        messages.keep(folder)
        show(folder, steps, status)


def show(folder, steps, status):
    trackers = [Jsonl(), ConsoleTracker(ConsoleTracker.Config())]
    for tracker in trackers:
        tracker.start(RunInfo(folder, "quickstart", CONFIG, 40))
        tracker.log(0, "eval", evaluation(4.0))
        for step in range(1, steps + 1):
            tracker.log(step, "train", {"loss": 4 - step / 40, "rewards/accuracy": 0.5, "pairs_per_second": 1234.5})
            if step % 20 == 0:
                tracker.log(step, "eval", evaluation(4 - step / 20))
    log.warning("a row says \x1b[31mred\x1b[0m\r\x07 words")
    log.debug("a detail")
    (folder / "model").mkdir()
    result = {"status": status, "steps": steps, "wall_time_seconds": 3723.4, "peak_memory_bytes": 2_500_000_000}
    trackers[1].finish(result | {"pairs_per_second": 1234.5, "error": "Traceback\nOutOfMemoryError: too much"})


def test_without_a_terminal_it_is_plain_lines(tmp_path, screen):
    simulate(tmp_path)
    said = screen.getvalue()
    assert CONTROL.findall(said) == []
    assert not re.search("[\u2500-\u259f]", said)
    lines = [line.strip() for line in said.splitlines()]
    assert "loss: orpo" in lines
    assert "lam=0.1  nll=prompt_and_answer" in lines  # not wrapped, however narrow
    assert "lam_schedule: constant" in lines
    assert "tracker: console, wandb" in lines
    assert any(line.endswith(r'pairs.jsonl  template="User: {}\n"') for line in lines)
    assert "warning: a row says red words" in lines
    assert "a detail" not in said


def test_progress_is_the_first_and_the_last_step_of_a_fast_run(tmp_path, screen):
    simulate(tmp_path)
    progress = [line for line in screen.getvalue().splitlines() if re.match(r"step \d+/", line)]
    assert progress[0].startswith("step 1/40 (2%)  loss 3.9750  accuracy 0.50  1,234 pairs/s")
    assert progress[-1].startswith("step 40/40 (100%)")
    assert progress[-1].endswith("0:00 left")
    assert len(progress) == 2


def test_a_slow_run_says_a_line_now_and_then(tmp_path, screen, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))  # a second a step
    tracker = ConsoleTracker(ConsoleTracker.Config())
    tracker.start(RunInfo(tmp_path, "x", {}, 2000))
    for step in range(1, 2001):
        tracker.log(step, "train", {"loss": 1.0})
    progress = [line for line in screen.getvalue().splitlines() if line.startswith("step ")]
    assert [line.split("/")[0] for line in progress[:3]] == ["step 1", "step 61", "step 121"]
    assert progress[1].endswith("32:19 left")


def test_an_evaluation_stands_beside_the_first_one(tmp_path, screen):
    simulate(tmp_path)
    said = screen.getvalue()
    assert re.search(r"held-out pairs +step 0 +step 20 +change\nloss +4\.0000 +3\.0000 +-1\.0000\n", said)
    assert re.search(r"held-out pairs +before training +after training +change\nloss +4\.0000 +2\.0000 +-2\.0000", said)
    assert "only/some" in said


def test_the_test_stands_beside_what_changed(tmp_path, screen):
    tracker = ConsoleTracker(ConsoleTracker.Config())
    tracker.start(RunInfo(tmp_path, "x", {}, 2))
    for step, split, loss in ((0, "eval", 4.0), (2, "eval", 3.0), (2, "test", 3.5)):
        tracker.log(step, split, {"loss": loss})
    tracker.finish({"status": "completed", "steps": 2})
    head = "held-out pairs +before training +after training +change +test pairs"
    assert re.search(rf"{head}\nloss +4\.0000 +3\.0000 +-1\.0000 +3\.5000", screen.getvalue())


def test_a_resumed_run_compares_with_the_first_evaluation_of_all(tmp_path, screen):
    simulate(tmp_path, steps=20, status="interrupted")
    assert re.search(r"before training +step 20", screen.getvalue())
    screen.truncate(0)
    tracker = ConsoleTracker(ConsoleTracker.Config())
    tracker.start(RunInfo(tmp_path, "quickstart", CONFIG, 40))
    tracker.log(30, "eval", evaluation(1.0))
    assert re.search(r"step 0 +step 30 +change\nloss +4\.0000 +1\.0000", screen.getvalue())


def test_the_last_page_says_how_it_ended_and_where_what_is_lies(tmp_path, screen):
    simulate(tmp_path, steps=30, status="failed")
    said = screen.getvalue()
    assert (
        "failed after 30 of 40 steps in 1:02:03, 1,234 pairs/s, peak memory 2.5 GB\nOutOfMemoryError: too much" in said
    )
    assert f"everything lies in {tmp_path.resolve()}\n" in said
    listed = re.findall(r"^  (\S+)  ", said.split("everything lies in")[1], re.MULTILINE)
    assert listed == ["metrics.jsonl", "model/", "run.log"]


def test_run_log_holds_what_the_console_said_with_times_and_details(tmp_path, screen):
    simulate(tmp_path)
    text = (tmp_path / "run.log").read_text()
    assert CONTROL.findall(text) == []
    without_times = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO |WARNING|DEBUG) +", "", text, flags=re.MULTILINE)
    kept = [line for line in without_times.splitlines() if line]
    said = [line.removeprefix("warning: ") for line in screen.getvalue().splitlines() if line]
    assert [line for line in kept if line != "a detail"] == said
    assert "a detail" in kept


def test_another_rank_has_a_file_and_says_aloud_only_what_made_it_fail(tmp_path, screen, capfd):
    with Messages(3) as messages:
        log.error("what all ranks say")
        messages.keep(tmp_path)
        log.warning("kept")
        assert (tmp_path / "rank-3.log").read_text().endswith("WARNING kept\n")
        assert screen.getvalue() == "".join(capfd.readouterr())
        try:
            raise RuntimeError("out of memory")
        except RuntimeError:
            log.exception("the run failed")
    out, err = capfd.readouterr()
    assert err == "rank 3 failed: RuntimeError: out of memory\n"
    assert "Traceback" in (tmp_path / "rank-3.log").read_text()
    assert screen.getvalue() == out == ""


def test_without_a_reader_the_run_goes_on(tmp_path):
    """As where `| head -1` has left."""
    code = f"""
import logging
from pathlib import Path
from orpo_exp.tracking.logs import CONSOLE, Messages
with Messages(0) as messages:
    messages.keep(Path({str(tmp_path)!r}))
    for number in range(5):
        CONSOLE.print("a page")
        logging.getLogger("orpo_exp").warning("message %d", number)
print("what Python itself has to say")
"""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert "message 4" in (tmp_path / "run.log").read_text()


def test_afterwards_messages_go_where_they_went_before(tmp_path, screen):
    root = logging.getLogger("orpo_exp")
    before = root.level, root.propagate, list(root.handlers)
    with Messages(0) as messages:
        log.info("one")
        messages.keep(tmp_path)
        log.info("two")
        (file,) = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
    log.warning("three")
    assert screen.getvalue() == "one\ntwo\n"
    assert (tmp_path / "run.log").read_text().endswith("INFO    two\n")
    assert file.stream is None
    assert (root.level, root.propagate, list(root.handlers)) == before


@pytest.mark.parametrize("colour", [True, False])
def test_in_a_terminal_a_live_bar_stays_below_the_messages(tmp_path, monkeypatch, colour):
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    master, slave = os.openpty()
    said = bytearray()

    def read() -> None:
        try:
            while data := os.read(master, 4096):
                said.extend(data)
        except OSError:  # Linux says so when the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal:
        use(monkeypatch, Console(file=terminal, highlight=False, width=100))
        simulate(tmp_path)
    reader.join(10)
    os.close(master)
    text = said.decode()
    assert "40/40" in text
    assert "├── " in text
    assert text.rindex("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is there
    assert bool(re.search(r"\x1b\[[0-9;]*3\dm", text)) == colour
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert text.index("warning: a row says red words") < text.rindex("40/40 ") < text.index("after training")
    assert CONTROL.findall((tmp_path / "run.log").read_text()) == []


def test_numbers_and_times_read_well():
    assert [number(v) for v in (0.0, 2.5, -0.12345, 1e-5, 123456.0, float("nan"))] == [
        "0.0000",
        "2.5000",
        "-0.1235",
        "1e-05",
        "1.23e+05",
        "nan",
    ]
    assert [duration(s) for s in (0.4, 65, 3723, 36000)] == ["0:00", "1:05", "1:02:03", "10:00:00"]
