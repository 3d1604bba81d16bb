import json
import os
import socket
import subprocess
import time

import pytest
from sweeps.builder import DEAD, result

from orpo_exp.runs.states import State, process_started, read_result, slurm_queue, state_of
from orpo_exp.sweeps.results import reason
from orpo_exp.sweeps.sweep_file import Sweep, SweepPoint, read_sweep, write_sweep


def state(folder, content, job_id=None, queue=None):
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content))
    return state_of(folder, job_id, queue)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "point"


def test_without_a_result_a_point_is_missing_queued_just_beginning_or_killed(folder):
    assert state_of(folder, None, None) == "missing"
    assert state_of(folder, None, {"7_1": "PENDING"}) == "missing"
    assert state_of(folder, "7_0", None) == "missing"
    assert state_of(folder, "7_0", {"7_1": "PENDING"}) == "killed"
    assert reason(State.killed, {}, "7_0") == "its job 7_0 ended before the run wrote anything; logs/ may say why"
    assert state_of(folder, "7_0", {"7_0": "PENDING"}) == "queued"
    assert state_of(folder, "7_0", {"7_0": "RUNNING"}) == "running"


@pytest.mark.parametrize("status", ["completed", "failed", "interrupted"])
def test_an_ended_run_says_so_itself(folder, status):
    assert state(folder, result(status, pid=DEAD)) == status


def test_a_run_on_this_machine_is_known_by_its_process(folder):
    assert state(folder, result("running")) == "running"
    assert state(folder, result("running", pid=DEAD)) == "killed"
    # this process was not there yet when the run was last heard of: the number is somebody else's now
    before = process_started(os.getpid()) - 60
    assert state(folder, result("running", heartbeat=before)) == "killed"
    assert state(folder, result("running", pid=DEAD, job_id="7_0"), "7_0", {"7_0": "RUNNING"}) == "killed"


def test_a_process_that_nobody_waited_for_is_dead(folder):
    child = subprocess.Popen(["true"])
    for _ in range(200):
        if process_started(child.pid) is None:
            break
        time.sleep(0.05)
    assert os.path.exists(f"/proc/{child.pid}")
    assert state(folder, result("running", pid=child.pid)) == "killed"
    child.wait()


def test_a_process_began_when_it_did():
    begun = time.time()
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert process_started(child.pid) == pytest.approx(begun, abs=3)
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("age", "job_id", "queue", "expected"),
    [
        (5, None, None, "running"),
        (500, None, {}, "running"),
        (700, None, {}, "killed"),
        (700, "7", {"7": "RUNNING"}, "running"),
        (5, "7", {}, "killed"),
        (5, "7", None, "running"),
        (700, "7", None, "killed"),
    ],
)
def test_a_run_on_another_machine_is_known_by_its_job_or_its_heartbeat(folder, age, job_id, queue, expected):
    elsewhere = result("running", host="elsewhere", heartbeat=time.time() - age, job_id=job_id, pid=DEAD)
    assert state(folder, elsewhere, queue=queue) == expected


@pytest.mark.parametrize("word", ["PENDING", "REQUEUED", "REQUEUE_HOLD"])
def test_what_slurm_holds_back_is_queued_unless_it_is_done(folder, word):
    queue = {"7_0": word}
    assert state(folder, result("interrupted", job_id="7_0"), "7_0", queue) == "queued"
    assert state(folder, result("running", job_id="7_0", pid=DEAD), "7_0", queue) == "queued"
    assert state(folder, result("failed", job_id="3_0"), "7_0", queue) == "queued"
    assert state(folder, result("completed"), "7_0", queue) == "completed"
    assert state(folder, result("interrupted", job_id="7_0"), None, queue) == "queued"


def test_what_a_job_left_on_another_machine_before_it_was_requeued_is_dead(folder, monkeypatch):
    """A local sweep inside of a batch job, say: squeue knows the job, which is the one that asks."""
    left = result("running", host="elsewhere", job_id="7", pid=DEAD)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert state(folder, left, None, {"7": "RUNNING"}) == "running"
    assert state(folder, left | {"heartbeat": time.time() - 700}, None, {"7": "RUNNING"}) == "killed"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert state(folder, left, None, {"7": "RUNNING"}) == "killed"
    assert state(folder, left | {"job_id": "8"}, None, {"8": "RUNNING"}) == "running"


def test_a_failed_point_whose_new_job_has_begun_is_running(folder):
    assert state(folder, result("failed", job_id="3_0"), "7_0", {"7_0": "RUNNING"}) == "running"
    assert state(folder, result("failed", job_id="7_0"), "7_0", {"7_0": "COMPLETING"}) == "failed"


@pytest.mark.parametrize("text", ['{"status": "comp', "[]", "{}", '{"status": "done"}', ""])
def test_a_broken_result_is_a_failure_that_says_so(folder, text):
    folder.mkdir()
    (folder / "result.json").write_text(text)
    assert state_of(folder, None, None) == "failed"
    assert "result.json cannot be read" in read_result(folder)["error"]


def test_no_result_is_none(folder):
    assert read_result(folder) is None


def test_a_sweep_comes_back_as_it_was_written(tmp_path):
    assert read_sweep(tmp_path) is None
    points = [SweepPoint("a", {"loss.lam": "0.1"}, "00", "12_0"), SweepPoint("b", {"loss.lam": "1"}, "01")]
    sweep = Sweep("lambda_sweep", "mine", ["loss.lam"], ["+experiment=lambda_sweep"], points)
    write_sweep(tmp_path, sweep)
    assert read_sweep(tmp_path) == sweep
    assert set(json.loads((tmp_path / "sweep.json").read_text())) == {
        "experiment", "name", "swept", "overrides", "points", "metric", "direction", "later",
    }  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.json"]


@pytest.mark.parametrize("text", ["{", '{"experiment": "x"}', "[1]"])
def test_a_broken_sweep_is_refused_with_advice(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=r"sweep\.json cannot be understood .* Remove it"):
        read_sweep(tmp_path)


def test_squeue_is_read_where_it_works(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm_queue() is None
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error' >&2\nexit 1\n")
    squeue.chmod(0o755)
    assert slurm_queue() is None
    squeue.write_text(f'#!/bin/sh\n[ "$3" = --user={os.getuid()} ] || exit 1\necho 12_0 RUNNING\necho 15 PENDING\n')
    assert slurm_queue() == {"12_0": "RUNNING", "15": "PENDING"}


def test_the_host_of_a_result_is_this_one():
    assert result()["host"] == socket.gethostname()  # what the tests above rest on
