import json

import pytest
from rich.console import Console
from sweeps.builder import DEAD, make_run, make_sweep, result

from orpo_exp.sweeps import progress
from orpo_exp.sweeps.looks import Looks, mean_curve
from orpo_exp.sweeps.status import last_records, main, status_table


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
    console = Console(width=80, force_terminal=True, color_system=None, record=True)
    console.print(status_table(sweep))
    lines = [line for line in console.export_text().splitlines() if line]
    assert len(lines) == 1 + 5 + 1


def test_where_there_is_room_for_few_rows_what_runs_or_failed_is_shown(sweep):
    console = Console(width=200, force_terminal=True, color_system=None, record=True)
    console.print(status_table(sweep, most=3))
    lines = [line.split() for line in console.export_text().splitlines() if line]
    assert [line[1] for line in lines[1:-1]] == ["seed=1", "seed=2", "seed=3"]
    assert " ".join(lines[-1]).endswith("1 killed; 2 of them are not shown")


def test_following_ends_when_nothing_runs_and_nothing_more_begins(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "sweep"
    places = make_sweep(folder, [{"seed": str(i)} for i in range(2)])
    make_run(places[0], {})
    now = iter(range(0, 10_000, 7))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(progress.time, "sleep", lambda seconds: None)
    assert main([str(folder), "--follow"]) == 1  # one never began
    assert "completed" in capsys.readouterr().out
    make_run(places[1], {})
    assert main([str(folder), "--follow"]) == 0
    assert main([str(tmp_path), "--follow"]) == 2
    race = tmp_path / "race"
    places = make_sweep(race, [{"seed": str(i)} for i in range(2)])
    make_run(places[0], {})
    make_run(places[1], {}, status="waiting")

    def decided(seconds):
        (places[1] / "result.json").write_text(json.dumps(result("set aside")))

    monkeypatch.setattr(progress.time, "sleep", decided)
    assert main([str(race), "--follow"]) == 0


def test_curves_are_means_over_seeds_as_far_as_all_have_come(tmp_path):
    points = [{"loss.lam": lam, "seed": seed} for lam in ("0.1", "0.5") for seed in "01"]
    folder = tmp_path / "sweep"
    places = make_sweep(folder, points)
    looks = Looks(folder)
    assert looks.drawn(80, 30) is None

    def evaluated(place, *values, torn=""):
        lines = [
            json.dumps({"step": 10 * i, "split": "eval", "time": 0.0, "rewards/accuracy": value})
            for i, value in enumerate(values)
        ]
        (place / "metrics.jsonl").write_text("\n".join(lines) + "\n" + torn)

    for place in places[:3]:
        make_run(place, {}, status="running")
    evaluated(places[0], 0.2, 0.4, 0.9)
    evaluated(places[1], 0.4, 0.8, torn='{"step": 20, "split": "eval", "rewa')
    evaluated(places[2], 0.5)
    assert mean_curve([looks._evaluations(place) for place in places[:2]], "rewards/accuracy") == pytest.approx(
        {0: 0.3, 10: 0.6}
    )
    text = looks.drawn(80, 30).plain
    assert "rewards/accuracy, held out\n" in text
    assert "loss.lam=0.1" in text
    assert "loss.lam=0.5" not in text  # a single evaluation is no curve
    evaluated(places[2], 0.5, 0.7)
    assert "loss.lam=0.5" in looks.drawn(80, 30).plain
    assert looks.drawn(80, 8) is None
    assert all(len(line) <= 80 for line in text.splitlines())
    assert Looks(folder, "loss").drawn(80, 30) is None


@pytest.mark.parametrize(("metric", "left_out"), [("rewards/accuracy", "lam=0"), ("loss", "lam=7")])
def test_of_many_settings_those_ahead_are_drawn(tmp_path, metric, left_out):
    folder = tmp_path / "sweep"
    places = make_sweep(folder, [{"lam": str(i)} for i in range(8)])
    for i, place in enumerate(places):
        make_run(place, {})
        lines = [{"step": step, "split": "eval", "time": 0.0, metric: step + i} for step in (0, 1)]
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = Looks(folder, metric).drawn(100, 40).plain
    assert f"{metric}, held out: the 6 of 8 settings that are ahead" in text
    assert left_out not in text.split()
    assert sum(f"lam={i}" in text.split() for i in range(8)) == 6


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
