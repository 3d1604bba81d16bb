import csv
import fcntl
import math
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import scipy.stats
from sweeps.builder import DEAD, DECLARED, content, lambda_sweep, make_run, make_sweep

from orpo_exp.sweeps import summary
from orpo_exp.sweeps.summary import main, point_ended, write_summary

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nRuntimeError: out of | memory\n'


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Drawing takes seconds; test_sweep_plots.py draws."""
    monkeypatch.setattr(summary, "draw_pictures", lambda *_: {})


def rows(folder):
    return list(csv.DictReader((folder / "summary.csv").open()))


def test_seeds_are_grouped_and_the_best_is_compared_with_the_runner_up(tmp_path):
    folder = lambda_sweep(tmp_path / "sweep")
    answer = write_summary(folder)
    found = content(folder)
    assert found["swept"] == ["loss.lam"]
    assert [s["setting"]["loss.lam"] for s in found["settings"]] == ["0", "0.1", "1"]
    best = found["settings"][1]
    accuracy = best["metrics"]["rewards/accuracy"]
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert best["seeds"] == ["0", "1", "2"]
    assert (accuracy["n"], accuracy["mean"], accuracy["deviation"]) == pytest.approx((3, 0.7, 0.01))
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((0.7 - half, 0.7 + half), rel=1e-6)
    assert found["best"] == {"loss.lam": "0.1"}

    runner_up = found["lead"][0]  # 0.12, 0.10, 0.08: mean 0.1, deviation 0.02
    # of three settings; two seeds' worth of freedom, and half of one that the other settings lend
    below = scipy.stats.studentized_range.ppf(0.95, 3, 2.5) / math.sqrt(2) * 0.02 / math.sqrt(3)
    above = 4.302653 * 0.02 / math.sqrt(3)
    assert runner_up["setting"] == {"loss.lam": "1"}
    ends = runner_up["mean"], runner_up["low"], runner_up["high"]
    assert ends == pytest.approx((0.1, 0.1 - below, 0.1 + above), rel=1e-6)
    assert runner_up["told_apart"]
    assert "Best by rewards/accuracy (higher is better): loss.lam=0.1 with 0.7000 ± 0.0248" in answer.text
    assert "leaves 0 out" in answer.text
    assert "3 seeds are few" in answer.text

    page = (folder / "summary.md").read_text()
    assert answer.text in page
    assert "| **0.1** | **3** | **0.7000 ± 0.0248** | **0.3000 ± 0.0248** | **best** |" in page
    assert "9 of 9 points are completed" in page
    assert not (folder / "summary.md.tmp").exists()
    assert {f.name for f in folder.iterdir() if f.is_file()} == {
        "sweep.json", "summary.md", "summary.csv", "summary.json", "report.html", ".summary.lock",
    }  # fmt: skip


def test_a_runner_up_within_the_noise_is_not_told_apart(tmp_path):
    folder = lambda_sweep(tmp_path / "sweep", {"0": (0.5, 0.6), "1": (0.66, 0.5)})
    answer = write_summary(folder)
    assert "includes 0: they are not told apart, for other seeds on pairs like these" in answer.text
    assert "over their common seeds, with a 95% interval" in answer.text
    assert "(paired t, 2 seeds)" in answer.text
    assert not content(folder)["lead"][0]["told_apart"]


def test_a_tie_has_no_winner(tmp_path):
    answer = write_summary(lambda_sweep(tmp_path / "sweep", {"0": (0.5, 0.6), "1": (0.6, 0.5), "2": (0.1, 0.2)}))
    assert "2 settings share the best rewards/accuracy" in answer.text
    assert "None of them is ahead" in answer.text


def test_one_seed_says_that_it_says_little(tmp_path):
    folder = lambda_sweep(tmp_path / "sweep", {"0": (0.5,), "1": (0.6,)})
    answer = write_summary(folder)
    assert "loss.lam=1 with 0.6000 (one seed, so no interval)" in answer.text
    assert "nothing tells whether that is chance: one of the two has a single seed" in answer.text
    assert content(folder)["settings"][0]["metrics"]["rewards/accuracy"]["low"] is None


def test_another_metric_decides_where_it_is_asked_for(tmp_path, capsys):
    folder = lambda_sweep(tmp_path / "sweep", declared=DECLARED)
    assert "Best by nll_loss (lower is better): loss.lam=0.1" in write_summary(folder, "nll_loss").text
    assert main([str(folder), "--metric", "nll_loss", "--direction", "max"]) == 0
    assert "Best by nll_loss (higher is better): loss.lam=0 " in capsys.readouterr().out
    with pytest.raises(ValueError, match="no completed point has the metric 'nl_loss'; there are lam, nll_loss"):
        write_summary(folder, "nl_loss")


@pytest.mark.parametrize(("metric", "declared"), [("lam", DECLARED), ("nll_loss", None)])
def test_which_end_is_good_is_not_guessed(tmp_path, capsys, metric, declared):
    folder = lambda_sweep(tmp_path / "sweep", declared=declared)
    assert main([str(folder), "--metric", metric]) == 2
    assert f"{metric} has no end known as the good one: give --direction max or min" in capsys.readouterr().err
    assert main([str(folder), "--metric", metric, "--direction", "min"]) == 0
    assert f"Best by {metric} (lower is better)" in capsys.readouterr().out


def test_ten_seeds_are_bootstrapped(tmp_path):
    folder = lambda_sweep(tmp_path / "sweep", {"0": tuple(0.5 + i * i / 1000 for i in range(10))})
    answer = write_summary(folder)
    assert "bootstrap (BCa), 10 seeds" in answer.text
    assert content(folder)["settings"][0]["metrics"]["rewards/accuracy"]["method"] == "bootstrap (BCa), 10 seeds"


def test_what_is_unfinished_is_listed_with_its_reason(tmp_path):
    folder = tmp_path / "sweep"
    points = [{"loss.lam": "0.1", "seed": str(seed)} for seed in range(6)]
    done, failed, running, stopped, broken, _missing = make_sweep(folder, points)
    make_run(done, {"rewards/accuracy": 0.5})
    make_run(failed, {"rewards/accuracy": 0.9}, status="failed", error=TRACEBACK)
    make_run(running, {}, status="running", steps=40)
    make_run(stopped, {}, status="interrupted", steps=30)
    make_run(broken, {})
    (broken / "result.json").write_text('{"status": "comp')
    (running / "metrics.jsonl").write_text('{"step": 1, "split": "tr')
    write_summary(folder)
    states = [row["state"] for row in rows(folder)]
    assert states == ["completed", "failed", "running", "interrupted", "failed", "missing"]
    page = (folder / "summary.md").read_text()
    assert "| loss.lam=0.1, seed=1 | failed | RuntimeError: out of \\| memory | `loss.lam=0.1,seed=1` |" in page
    assert "asked to stop after step 30 of 100" in page
    assert "result.json cannot be read" in page
    assert "| loss.lam=0.1, seed=5 | missing | never started |" in page
    assert "1 of 6 points are completed: 1 missing, 1 running, 1 completed, 2 failed, 1 interrupted." in page
    assert content(folder)["settings"][0]["seeds"] == ["0"]  # a failed run's numbers do not count


def test_a_killed_point_says_when_it_was_last_heard_of(tmp_path):
    folder = tmp_path / "sweep"
    (killed,) = make_sweep(folder, [{"seed": "0"}])
    make_run(killed, {}, status="running", pid=DEAD, steps=40)
    answer = write_summary(folder)
    assert answer.text.startswith("No completed point has the metric rewards/accuracy yet.")
    assert "1 of 1 points have no result" in answer.text
    assert "killed after step 40 of 100; last heard of" in (folder / "summary.md").read_text()


def test_the_csv_has_a_row_for_each_point(tmp_path):
    folder = lambda_sweep(tmp_path / "sweep", {"0.05": (0.25, None)})
    write_summary(folder)
    assert rows(folder) == [
        {"loss.lam": "0.05", "seed": "0", "state": "completed", "eval/lam": "0.05", "eval/nll_loss": "0.75",
         "eval/rewards/accuracy": "0.25", "steps": "100", "wall_time_seconds": "60.0",
         "folder": "loss.lam=0.05,seed=0"},
        {"loss.lam": "0.05", "seed": "1", "state": "missing", "eval/lam": "", "eval/nll_loss": "",
         "eval/rewards/accuracy": "",
         "steps": "0", "wall_time_seconds": "0.0", "folder": "loss.lam=0.05,seed=1"},
    ]  # fmt: skip


def test_costs_count_gpus_and_cores(tmp_path):
    gpu = {"hardware": {"cores": 16, "gpus": ["H200"] * 4}, "world_size": 8, "wall_time_seconds": 1800.0}
    folder = lambda_sweep(tmp_path / "sweep", {"0": (0.5, 0.6)}, **gpu)
    write_summary(folder)
    found = content(folder)
    assert (found["wall_time_seconds"], found["gpu_hours"], found["cpu_core_hours"]) == (3600.0, 8.0, 0.0)
    assert "times its wall time): 8.0000." in (folder / "summary.md").read_text()
    folder = lambda_sweep(tmp_path / "cpu", {"0": (0.5, 0.6)}, wall_time_seconds=1800.0)
    write_summary(folder)
    assert content(folder)["gpu_hours"] == 0.0
    assert content(folder)["cpu_core_hours"] == 2.0  # two runs of half an hour with two cores


def test_metrics_that_are_not_numbers_are_left_out(tmp_path):
    folder = tmp_path / "sweep"
    for place in make_sweep(folder, [{"seed": "0"}, {"seed": "1"}]):
        make_run(place, {"rewards/accuracy": 0.5, "loss": None, "x": math.inf}, seed=int(place.name[-1]))
    write_summary(folder)
    assert set(content(folder)["settings"][0]["metrics"]) == {"rewards/accuracy"}


def test_a_metric_other_than_accuracy_decides_where_there_is_none(tmp_path):
    folder = tmp_path / "sweep"
    for i, place in enumerate(make_sweep(folder, [{"model": "a"}, {"model": "b"}])):
        make_run(place, {"loss": float(i)})
    assert "Best by loss (lower is better): model=a" in write_summary(folder).text


@contextmanager
def behind_the_lock(folder, entry):
    """Somebody else has the lock during the block, and `entry` waits for it in a thread."""
    with (folder / ".summary.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=entry, args=(folder,))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        yield
    waiting.join(30)
    assert not waiting.is_alive()


def test_the_summary_waits_for_the_lock(tmp_path):
    folder = lambda_sweep(tmp_path / "sweep", {"0": (0.5, None)})
    with behind_the_lock(folder, write_summary):
        assert not (folder / "summary.md").exists()
        make_run(folder / "loss.lam=0,seed=1", {"rewards/accuracy": 0.6})  # ends meanwhile, and is seen
    assert [row["state"] for row in rows(folder)] == ["completed", "completed"]


def test_points_that_end_together_leave_it_to_the_one_that_waits(tmp_path, monkeypatch):
    folder = lambda_sweep(tmp_path / "sweep", {"0": (0.5, None), "1": (None,)})
    read: list[int] = []
    summarise = summary.summarise
    monkeypatch.setattr(summary, "summarise", lambda *given: (read.append(1), summarise(*given)))
    with behind_the_lock(folder, point_ended):
        make_run(folder / "loss.lam=0,seed=1", {"rewards/accuracy": 0.6})
        point_ended(folder)  # returns at once
        assert not read
    assert read == [1]
    assert [row["state"] for row in rows(folder)] == ["completed", "completed", "missing"]
    make_run(folder / "loss.lam=1,seed=0", {"rewards/accuracy": 0.6})
    point_ended(folder)
    assert [row["state"] for row in rows(folder)] == ["completed"] * 3


def test_two_sweeps_are_told_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lambda_sweep(tmp_path / "a", {"0": (0.5, 0.5), "0.1": (0.6, 0.7)})
    lambda_sweep(tmp_path / "b", {"0.1": (0.1, 0.1, 0.8), "1": (0.9, None, 0.8)})
    assert main(["a", "b"]) == 0
    assert (tmp_path / "a" / "summary.md").exists()
    assert (tmp_path / "b" / "summary.md").exists()
    joint = tmp_path / "summary"
    found = content(joint)
    seeds = {s["setting"]["loss.lam"]: s["seeds"] for s in found["settings"]}
    assert seeds == {"0": ["0", "1"], "0.1": ["0", "1", "2"], "1": ["0", "2"]}
    middle = found["settings"][1]["metrics"]["rewards/accuracy"]
    assert middle["mean"] == pytest.approx((0.6 + 0.7 + 0.8) / 3)  # of a repeated seed the first counts
    assert sum(not point["counted"] for point in found["points"]) == 3
    page = (joint / "summary.md").read_text()
    assert "2 points repeat a setting and a seed" in page
    assert "python -m orpo_exp.sweeps.summary a b --output summary" in page
    assert "`../b/loss.lam=1,seed=1`" in page
    assert "different numbers of seeds, 2 to 3" in capsys.readouterr().out


def test_a_folder_without_a_sweep_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2
    assert "there is no sweep.json, and no folder of a run in it" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["sweeps.summary", "sweeps.status", "runs.states"])
def test_reading_needs_nothing_of_the_training_side(module):
    code = f"import sys, orpo_exp.{module}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("broken", [False, True])
def test_the_page_shows_the_pictures_that_could_be_drawn(tmp_path, monkeypatch, broken):
    from orpo_exp.sweeps import plots

    def draw(results, metric, folder):
        if broken:
            raise RuntimeError("no fonts")
        return {folder / "metrics.png": "what is seen"}

    monkeypatch.undo()
    monkeypatch.setattr(plots, "draw_sweep", draw)
    folder = lambda_sweep(tmp_path / "sweep")
    write_summary(folder)
    page = (folder / "summary.md").read_text()
    assert ("![metrics](plots/metrics.png)\n\n*what is seen*" in page) is not broken
