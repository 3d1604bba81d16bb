"""Who changes sweep.json loses nothing that somebody else noted there."""

import fcntl
import threading
from dataclasses import replace

from orpo_exp.launchers.slurm import note_jobs
from orpo_exp.sweeps.sweep_file import Sweep, SweepPoint, add_points, change_sweep, read_sweep


def sweep(*seeds, swept=("seed",), job_id=None):
    points = [SweepPoint(f"seed={seed}", {"seed": str(seed)}, f"hash{seed}", job_id) for seed in seeds]
    return Sweep("adhoc", "s", list(swept), [f"seed={','.join(map(str, seeds))}"], points)


def test_points_planned_at_the_same_time_are_all_kept(tmp_path):
    add_points(tmp_path, sweep(0, 1))
    mine, theirs = sweep(0, 1, 2), sweep(0, 1, 3, swept=("seed", "loss.lam"))
    add_points(tmp_path, theirs)
    note_jobs(tmp_path, {"seed=0": ["7_0"], "seed=3": ["7_1"]})
    written = add_points(tmp_path, replace(mine, swept=["train.epochs", "seed"]))
    assert written == read_sweep(tmp_path)
    assert [(point.folder, point.job_id) for point in written.points] == [
        ("seed=0", "7_0"), ("seed=1", None), ("seed=3", "7_1"), ("seed=2", None),
    ]  # fmt: skip
    assert written.swept == ["seed", "loss.lam", "train.epochs"]
    assert written.overrides == mine.overrides, "the latest command's"


def test_a_point_takes_over_the_keys_that_were_planned_for_it(tmp_path):
    add_points(tmp_path, sweep(0))
    (point,) = sweep(0).points
    planned = replace(point, overrides={"a": "1", "seed": "0"})
    (written,) = add_points(tmp_path, replace(sweep(), points=[planned])).points
    assert written.overrides == {"a": "1", "seed": "0"}


def test_two_that_change_it_do_so_one_after_the_other(tmp_path):
    add_points(tmp_path, sweep(0, 1))
    begun, done = threading.Event(), threading.Event()

    def slowly(found):
        begun.set()
        assert not done.wait(0.3), "the other one did not wait"
        return replace(found, points=[*found.points, *sweep(2).points])

    def other():
        begun.wait()
        note_jobs(tmp_path, {"seed=1": ["9"]})
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    change_sweep(tmp_path, slowly)
    thread.join(10)
    assert [(point.folder, point.job_id) for point in read_sweep(tmp_path).points] == [
        ("seed=0", None), ("seed=1", "9"), ("seed=2", None),
    ]  # fmt: skip


def test_a_disk_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refused(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert len(add_points(tmp_path, sweep(0)).points) == 1
    assert "cannot be locked (no locks available)" in caplog.text
