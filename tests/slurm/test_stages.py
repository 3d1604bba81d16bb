"""Races and searches on a real Slurm: all is submitted at once, and nobody waits."""

import json
from collections import Counter

import pytest
from support import numbers

from orpo_exp.runs.states import read_result
from orpo_exp.sweeps.study import JOURNAL
from orpo_exp.sweeps.sweep_file import read_sweep

pytestmark = pytest.mark.slurm

# a learning rate that learns, one that cannot
RACE = [
    "--multirun", "optimizer.lr=1e-2,1e-8", "seed=0,1", "sweep.name=race", "train.max_steps=8", "train.eval_every=4",
    "train.global_batch_size=8", "data.eval_pairs=32", "data.split_seed=0", "sweep.metric=nll_loss",
]  # fmt: skip


def test_a_race_is_an_array_for_each_stage(commands):
    said = commands.submit(*RACE, "sweep.racing=true", "sweep.rungs=[0.5]", until="nobody has to wait")
    assert "submitted 4 points as job" in said, said
    assert "then, once these have ended, 4 points as job" in said
    commands.wait_until_ended()
    folder = commands.folder / "sweeps" / "quickstart" / "race"
    sweep = read_sweep(folder)
    assert sweep is not None
    results = {point.folder: read_result(folder / point.folder) for point in sweep.points}
    statuses = Counter((point.overrides["optimizer.lr"], results[point.folder]["status"]) for point in sweep.points)
    assert statuses == {("0.01", "completed"): 2, ("1e-08", "set aside"): 2}, commands.logs()
    for point in sweep.points:
        went_on = results[point.folder]["status"] == "completed"
        assert results[point.folder]["job_id"] == point.jobs[1 if went_on else 0]
        steps = [row["step"] for row in numbers(folder / point.folder) if row["split"] == "train"]
        assert steps == list(range(1, 9 if went_on else 5))
    assert "set aside" in (folder / "summary.md").read_text()


def test_a_search_asks_where_it_runs(commands):
    search = ["--multirun", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "seed=0,1", "sweep.name=search"]
    said = commands.give(*search, "sweep.trials=2")
    assert "4 points: 4 missing; 4 to run" in said
    folder = commands.folder / "sweeps" / "quickstart" / "search"
    again = commands.give(*search, "sweep.trials=2")
    assert "submitted" not in again, "all of it is under way"
    commands.wait_until_ended()
    sweep = read_sweep(folder)
    assert sweep is not None
    assert len(sweep.points) == len({point.job_id for point in sweep.points}) == 4
    assert len({point.overrides["optimizer.lr"] for point in sweep.points}) == 2
    assert all(read_result(folder / point.folder)["status"] == "completed" for point in sweep.points), commands.logs()
    records = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    assert sorted(of["trial_id"] for of in records if of["op_code"] == 6 and of["state"] == 1) == [0, 1]
    assert (folder / "summary.md").exists()
