"""On a real Slurm with two nodes: arrays, ranks, preemption, time limits, failures. `uv run pytest -m slurm`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slurm.commands import Commands
from support import numbers

from orpo_exp.sweeps.sweep_file import read_sweep

pytestmark = pytest.mark.slurm

TWO_NODES = ["hydra.launcher.nodes=2", "train.max_steps=100", "train.save_every=30", "tracker=[slow]"]


def points(sweep: Path) -> list[dict[str, Any]]:
    """What a sweep's summary says of each point."""
    listed: list[dict[str, Any]] = json.loads((sweep / "summary.json").read_text())["points"]
    return listed


@pytest.fixture(scope="module")
def lambda_sweep(commands: Commands) -> Path:
    """A sweep whose submitting process is killed as soon as it has said that it has submitted."""
    said = commands.submit(
        "--multirun", "loss.lam=0,0.5", "seed=0,1", "sweep.name=lambda", until="submitted 4 points as job"
    )
    assert "submitted 4 points as job" in said, said
    commands.wait_until_ended()
    return commands.folder / "sweeps" / "quickstart" / "lambda"


def test_a_lambda_sweep_is_an_array_whose_summary_needs_nobody(lambda_sweep, commands):
    sweep = read_sweep(lambda_sweep)
    assert sweep is not None
    array = (sweep.points[0].job_id or "").partition("_")[0]
    assert [point.job_id for point in sweep.points] == [f"{array}_{i}" for i in range(4)]
    assert [point["state"] for point in points(lambda_sweep)] == ["completed"] * 4, commands.logs()
    assert (lambda_sweep / "summary.md").exists()
    assert list((lambda_sweep / "plots").glob("*.png"))
    for point in sweep.points:
        assert json.loads((lambda_sweep / point.folder / "result.json").read_text())["job_id"] == point.job_id
        assert (lambda_sweep / "logs" / f"{point.job_id}_0_log.out").exists()


def test_a_second_submission_runs_nothing(lambda_sweep, commands):
    (lambda_sweep / "summary.md").unlink()
    said = commands.give("--multirun", "loss.lam=0,0.5", "seed=0,1", "sweep.name=lambda")
    assert "4 points: 4 completed; 0 to run" in said
    assert "submitted" not in said
    assert not commands.cluster.jobs()
    assert (lambda_sweep / "summary.md").exists()


@pytest.fixture(scope="module")
def mixed_sweep(commands: Commands) -> tuple[Path, str]:
    """Two losses with equal fields, each with a learning rate that works and one that diverges; and what was said."""
    said = commands.give(
        "--multirun", "loss=apo_zero,apo_down", "optimizer.lr=1e-3,1e30", "sweep.name=mixed",
        "hydra.launcher.wait=true", code=1,
    )  # fmt: skip
    return commands.folder / "sweeps" / "quickstart" / "mixed", said


def test_two_losses_with_equal_fields_are_two_points(mixed_sweep):
    folder, _ = mixed_sweep
    completed = [point for point in points(folder) if point["state"] == "completed"]
    assert [point["setting"]["loss"] for point in completed] == ["apo_zero", "apo_down"]
    first, second = (numbers(folder / point["folder"]) for point in completed)
    assert first != second


def test_a_failing_point_is_failed_and_stops_no_other(mixed_sweep, commands):
    folder, said = mixed_sweep
    sweep = read_sweep(folder)
    assert sweep is not None
    for point in sweep.points:
        fails = point.overrides["optimizer.lr"] == "1e+30"
        job = commands.cluster.job(point.job_id or "")
        assert job["JobState"] == ("FAILED" if fails else "COMPLETED")
        result = json.loads((folder / point.folder / "result.json").read_text())
        assert result["status"] == ("failed" if fails else "completed")
        log = (folder / "logs" / f"{point.job_id}_0_log.out").read_text()
        assert ("is not finite" in str(result["error"])) == ("is not finite" in log) == fails
        assert ("Traceback" in log) == fails
        assert f"{point.folder}: {result['status']}" in said


def test_two_tasks_on_two_nodes_are_two_ranks_of_one_run(whole, commands):
    result = commands.result("whole")
    assert result["status"] == "completed"
    assert result["world_size"] == 2
    assert result["requeues"] == 0
    (log,) = [file.name for file in whole.glob("rank-*.log")]
    assert log == "rank-1.log"
    assert {file.name[-9:] for file in (whole / "logs").glob("*_log.out")} == {"0_log.out", "1_log.out"}
    job = commands.cluster.job(result["job_id"])
    assert job["NodeList"] == "n[1-2]"


@pytest.fixture(scope="module")
def whole(commands: Commands) -> Path:
    """A run of two ranks on two nodes, left alone."""
    commands.give(*TWO_NODES, "hydra.run.dir=whole")
    commands.wait_until_ended()
    return commands.folder / "whole"


def test_a_preempted_run_is_requeued_and_goes_on_bit_for_bit(whole, commands):
    commands.give(*TWO_NODES, "hydra.run.dir=preempted")
    commands.wait_for(lambda: at_step(commands.folder / "preempted", 40))
    commands.cluster.run(
        "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"
    )
    commands.wait_until_ended()
    result = commands.result("preempted")
    assert (result["status"], result["requeues"]) == ("completed", 1), commands.logs()
    assert commands.cluster.job(result["job_id"])["Restarts"] == "1"
    assert numbers(commands.folder / "preempted") == numbers(whole)


def test_a_pipeline_over_two_nodes_ends_with_a_lost_rank_and_goes_on(whole, commands):
    pipeline = [*TWO_NODES, "plugin=hybrid", "plugin.pp_size=2", "hydra.run.dir=pipeline"]
    commands.give(*pipeline)
    commands.wait_for(lambda: at_step(commands.folder / "pipeline", 40))
    (job_id,) = commands.cluster.jobs()
    os.kill(rank_of(job_id, 1), signal.SIGKILL)
    commands.wait_until_ended()
    assert commands.result("pipeline")["status"] != "completed"
    assert "task 1: Killed" in commands.logs()  # by Slurm, which ends the other one at once
    commands.give(*pipeline)
    commands.wait_until_ended()
    assert commands.result("pipeline")["status"] == "completed", commands.logs()
    for ours, ddps in zip(numbers(commands.folder / "pipeline"), numbers(whole), strict=True):
        assert ours["loss"] == pytest.approx(ddps["loss"], rel=1e-4)


def rank_of(job_id: str, rank: int) -> int:
    """The process of a rank, on this machine as all nodes are."""
    wanted = {f"SLURM_JOB_ID={job_id}", f"SLURM_PROCID={rank}"}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            python = b"submitit" in (folder / "cmdline").read_bytes()
            if python and wanted <= set((folder / "environ").read_text().split("\0")):
                return int(folder.name)
    raise AssertionError(f"job {job_id} has no rank {rank}")


def test_a_run_that_needs_more_than_its_time_is_requeued(commands):
    """It needs more than a minute, and has one: Slurm warns at some moment of the second half of it. Then it gets more,
    so that the test takes no longer on a slow machine."""
    commands.give(
        "train.max_steps=600", "tracker=[slow]", "hydra.run.dir=long", "hydra.launcher.timeout_min=1",
        "hydra.launcher.signal_delay_s=1", "train.save_every=0",
    )  # fmt: skip
    (job_id,) = commands.cluster.jobs()
    commands.wait_for(lambda: commands.cluster.job(job_id)["Restarts"] == "1")
    commands.cluster.run("scontrol", "update", f"JobId={job_id}", "TimeLimit=30")
    commands.wait_until_ended()
    result = commands.result("long")
    assert (result["status"], result["job_id"]) == ("completed", job_id), commands.logs()
    assert result["requeues"] >= 1
    steps = [row["step"] for row in numbers(commands.folder / "long") if row["split"] == "train"]
    assert steps == list(range(1, 601))


def test_status_and_summary_know_the_sweep(lambda_sweep, commands):
    for tool in ("status", "summary"):
        command = [sys.executable, "-m", f"orpo_exp.sweeps.{tool}", str(lambda_sweep)]
        subprocess.run(command, check=True, env=commands.cluster.environment, capture_output=True)


def test_accounting_was_never_asked_for(lambda_sweep, mixed_sweep, commands):
    assert not (commands.cluster.folder / "sacct_was_called").exists()


def at_step(run: Path, step: int) -> bool:
    """Whether a run has come so far."""
    metrics = run / "metrics.jsonl"
    return metrics.exists() and f'"step": {step},' in metrics.read_text()
