"""A real offline run, read back from the file that `wandb sync` would upload."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpo_exp.tracking import RunInfo
from orpo_exp.tracking.weights_and_biases import Mode, WandB, run_id

KEY = "0123456789abcdef" * 2 + "deadbeef"


def records(folder: Path) -> Iterator:
    """The records in the .wandb files of a run's folder: LevelDB's log format behind seven bytes of W&B's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, place, message = path.read_bytes(), 7, b""
        while place + 7 <= len(content):
            left = 32768 - place % 32768
            if left < 7:  # too little for a header: the block ends in zeros
                place += left
                continue
            _, length, kind = struct.unpack_from("<IHB", content, place)
            message += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                yield Record.FromString(message)
                message = b""


def values(items) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run that was tracked, interrupted and resumed."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("runs") / "2030-01-01_run"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        for part in range(2):
            tracker = WandB(WandB.Config(mode=Mode.offline, group="sweep", tags=["tiny"]))
            tracker.start(RunInfo(folder, "test", {"loss": {"lam": 0.25}, "seed": 7}, 4))
            tracker.log(2 * part, "eval", {"loss": 3.0 - part})
            tracker.log(2 * part + 1, "train", {"loss": 2.5 - part, "rewards/accuracy": 0.5})
            tracker.log(2 * part + 1, "eval", {"loss": 2.25 - part})
            time.sleep(1.1 * (1 - part))  # W&B names a part's folder by the second
            status = "completed" if part else "interrupted"
            tracker.finish({"status": status, "eval": {"loss": 2.25 - part}})
    return folder


def test_every_number_arrives_over_our_own_step(run_folder):
    rows = [values(r.history.item) for r in records(run_folder) if r.HasField("history")]
    ours = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    assert ours == [
        {"step": 0, "eval/loss": 3.0},
        {"step": 1, "train/loss": 2.5, "train/rewards/accuracy": 0.5},
        {"step": 1, "eval/loss": 2.25},
        {"step": 2, "eval/loss": 2.0},
        {"step": 3, "train/loss": 1.5, "train/rewards/accuracy": 0.5},
        {"step": 3, "eval/loss": 1.25},
    ]
    metrics = {r.metric.glob_name: r.metric.step_metric for r in records(run_folder) if r.HasField("metric")}
    assert metrics == {"train/*": "step", "eval/*": "step", "test/*": "step"}


def test_the_same_folder_is_the_same_run_with_its_configuration(run_folder):
    first, second = [r.run for r in records(run_folder) if r.HasField("run")]
    assert first.run_id == second.run_id == run_id(run_folder) == run_id(run_folder / ".." / run_folder.name)
    assert run_id(run_folder) != run_id(run_folder.parent)
    config = values(first.config.update)
    assert (config["loss"], config["seed"]) == ({"lam": 0.25}, 7)
    assert (first.project, first.display_name, first.run_group, list(first.tags)) == (
        "orpo_exp",
        run_folder.name,
        "sweep",
        ["tiny"],
    )


def test_summary_and_exit_code_say_how_it_ended(run_folder):
    assert [r.exit.exit_code for r in records(run_folder) if r.HasField("exit")] == [1, 0]
    summary = {}
    for record in records(run_folder):
        if record.HasField("summary"):
            summary |= values(record.summary.update)
    assert summary["status"] == "completed"
    assert summary["eval/loss"] == 1.25


def test_neither_the_key_nor_the_code_is_in_any_file(run_folder):
    files = [path for path in run_folder.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert list(run_folder.glob("wandb/*/files/*")) == []


def in_a_process_of_its_own(code: str, folder: Path, **environment: str) -> str:
    """Run code that has `folder` and a `run` in it, without any W&B setting of this machine; what it printed."""
    start = f"""
import sys
from pathlib import Path
from orpo_exp.tracking import RunInfo, Trackers
from orpo_exp.tracking.weights_and_biases import Mode, WandB
folder = Path({str(folder)!r})
run = RunInfo(folder, "test", {{}}, 1)
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    clean |= {"HOME": str(folder), "NETRC": str(folder / "netrc")} | environment
    return subprocess.run(
        [sys.executable, "-c", start + code], env=clean, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_disabled_imports_nothing_and_writes_nothing(tmp_path):
    code = """
tracker = WandB(WandB.Config())
tracker.start(run)
tracker.log(1, "train", {"loss": 1.0})
tracker.finish({"status": "completed", "eval": {}})
print("wandb" in sys.modules, list(folder.iterdir()))
"""
    assert in_a_process_of_its_own(code, tmp_path) == "False []"


def test_online_without_a_key_is_refused_and_asks_nobody(tmp_path):
    code = """
try:
    WandB(WandB.Config(mode=Mode.online)).start(run)
except RuntimeError as error:
    print(error)
"""
    said = in_a_process_of_its_own(code, tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_ERROR_REPORTING="false")
    assert "`wandb login`" in said
