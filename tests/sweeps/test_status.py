import json

import pytest
from rich.console import Console
from sweeps.builder import DEAD, make_run, make_sweep

from orpo_exp.sweeps.status import last_records, main


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "sweep"
    done, running, killed, failed, _ = make_sweep(folder, [{"loss.lam": "0.1", "seed": str(i)} for i in range(5)])
    make_run(done, {})
    make_run(running, {}, status="running", steps=60)
    # two seconds a step, a pause of an hour between two attempts, an evaluation that takes three seconds, a torn end
    times = {57: 0, 58: 2, 59: 3602, 60: 3604, 61: 3606, 62: 3608}
    lines = [{"step": s, "split": "train", "time": float(t), "loss": 1 - s / 100} for s, t in times.items()]
    lines.insert(3, {"step": 59, "split": "eval", "time": 3603.0, "loss": 9.0})
    (running / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 63, "spl')
    make_run(killed, {}, status="running", steps=40, pid=DEAD)
    make_run(failed, {}, status="failed", steps=0, error="Traceback\nValueError: no such file")
    return folder


def printed(folder, capsys, code=0):
    assert main([str(folder)]) == code
    return capsys.readouterr()


def test_each_point_has_a_row_and_each_state_a_count(sweep, capsys):
    out = printed(sweep, capsys).out.splitlines()
    rows = {line.split()[1]: line.split() for line in out if line.startswith("loss.lam")}
    assert rows["seed=0"][2:] == ["completed", "100/100"]
    # 38 steps of two seconds each
    assert rows["seed=1"][2:] == ["running", "62/100", "0.3800", "1:16"]
    assert rows["seed=2"][2:9] == ["killed", "40/100", "killed", "after", "step", "40", "of"]
    assert rows["seed=3"][2:] == ["failed", "0/100", "ValueError:", "no", "such", "file"]
    assert rows["seed=4"][2:] == ["missing"]
    assert out[-1] == "5 points: 1 missing, 1 running, 1 completed, 1 failed, 1 killed"


def test_a_narrow_terminal_keeps_a_line_for_each_point(sweep):
    from orpo_exp.sweeps.status import status_table

    console = Console(width=80, force_terminal=True, color_system=None, record=True)
    console.print(status_table(sweep))
    lines = [line for line in console.export_text().splitlines() if line]
    assert len(lines) == 1 + 5 + 1


def test_the_end_of_a_long_file_is_enough(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    record = {"split": "train", "time": 1.0, "loss": 0.5, "filler": "x" * 200}
    path.write_text("".join(json.dumps({"step": step} | record) + "\n" for step in range(2000)))
    steps = [record["step"] for record in last_records(path)]
    assert steps == list(range(steps[0], 2000))
    assert 50 < len(steps) < 200


def test_runs_without_a_sweep_are_shown_by_their_folder(tmp_path, capsys):
    make_run(tmp_path / "2026-01-01", {}, status="interrupted", steps=7)
    out = printed(tmp_path, capsys).out
    assert out.splitlines()[1].split()[:3] == ["2026-01-01", "interrupted", "7/100"]


def test_slurm_is_asked_about_submitted_points(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("orpo_exp.sweeps.status.slurm_queue", lambda: {"9_0": "PENDING"})
    make_sweep(tmp_path, [{"seed": "0"}], ["9_0"])
    assert "queued" in (out := printed(tmp_path, capsys).out)
    assert "waits in Slurm's queue as job 9_0" in out


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert "not a sweep's folder" in printed(tmp_path, capsys, code=2).err
