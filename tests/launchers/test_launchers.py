"""Launchers: what they refuse, how they share a machine, and a sweep on this one from start to end."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from support import numbers, start_run, wait_for_end

from orpo_exp.cli import main
from orpo_exp.composition import check, chosen_launcher, compose
from orpo_exp.launchers import local
from orpo_exp.launchers.slurm import OFFLINE, Slurm
from orpo_exp.runs.order import RunOrder
from orpo_exp.runs.states import State, read_result, state_of
from orpo_exp.schema import ConfigError
from orpo_exp.sweeps.sweep_file import read_sweep

CONF = Path(__file__).parents[2] / "conf" / "hydra" / "launcher"
TOY = ["model=tiny", "data=toy", "train.max_steps=1"]
SLURM = "hydra/launcher=slurm"
TINY = [
    "+experiment=quickstart", "train.global_batch_size=4", "train.micro_batch_size=4", "train.samples=0",
    "data.eval_pairs=8", "train.eval_every=0", "tracker=[]", "sweep.name=s",
]  # fmt: skip


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Programs of Slurm's names that fail: nothing may be submitted here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue"):
        (folder / name).write_text("#!/bin/sh\necho no cluster here >&2\nexit 1\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


REFUSED = [
    (["hydra.launcher.bta=1"], "hydra.launcher.bta", "parallel"),
    (["+hydra.launcher.bta=1"], "hydra.launcher.bta", "parallel"),
    (["hydra.launcher.parallel=0"], "hydra.launcher.parallel", "at least 1"),
    (["hydra/launcher=basic"], "hydra/launcher", "local, slurm"),
    (["hydra/launcher=nope"], "hydra/launcher", "local, slurm"),
    ([SLURM, "hydra.launcher.bta=1"], "hydra.launcher.bta", "partition"),
    ([SLURM, "hydra.launcher.nodes=0"], "hydra.launcher.nodes", "at least 1"),
    ([SLURM, "hydra.launcher.timeout_min=1"], "hydra.launcher.signal_delay_s", "less than the 60 seconds"),
    ([SLURM, "hydra.launcher.container_mounts=[/data]"], "hydra.launcher.container_mounts", "without a container"),
    ([SLURM, "processes=2"], "processes", "a rank for each task"),
    ([SLURM], "hydra/launcher", "what sbatch accepts"),
    (["hydra.mode=MULTIRUN"], "hydra.mode", "None"),
    (["hydra.sweep.subdir=x"], "hydra.sweep.subdir", "by itself"),
    (["hydra.job.chdir=true"], "hydra.job.chdir", "False"),
]


@pytest.mark.parametrize(("overrides", "key", "allowed"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_refused_at_once(overrides, key, allowed, sbatch, capfd):
    for multirun in ([], ["--multirun", "seed=0,1"]):
        assert main([*multirun, *TOY, *overrides]) == 2
        page = capfd.readouterr().err
        told = dict(line.strip().split(maxsplit=1) for line in page.splitlines() if line.startswith("  "))
        assert told["key"] == key
        assert allowed in told["allowed"]


def test_slurm_without_slurm_is_refused(monkeypatch, capfd):
    monkeypatch.setenv("PATH", "")
    assert main([*TOY, SLURM]) == 2
    assert "login node" in capfd.readouterr().err


def test_a_run_whose_job_still_waits_is_not_submitted_again(sbatch, tmp_path, capfd):
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho 77 PENDING\n")
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 77\n")
    command = [*TOY, SLURM, f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(command) == 0
    assert "submitted as job 77" in capfd.readouterr().out
    assert main(command) == 2
    assert "77: PENDING" in capfd.readouterr().err
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\n")
    assert main(command) == 0


def test_where_a_stage_is_refused_none_is_submitted(sbatch, tmp_path, capfd):
    """The first one has been by then."""
    said = "if [ -e again ]; then echo no dependencies here >&2; exit 1; fi; touch again; echo Submitted batch job 7"
    (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/sh\n{said}\n")
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "scancel").write_text('#!/bin/sh\necho "$@" > cancelled\n')
    (tmp_path / "bin" / "scancel").chmod(stat.S_IRWXU)
    race = ["loss.lam=0,1", "seed=0,1", "sweep.racing=true", "train.max_steps=4"]
    assert main(["--multirun", *TOY, SLURM, *race]) == 2
    assert "no dependencies here" in capfd.readouterr().err
    assert Path("cancelled").read_text() == "7\n"
    (sweep,) = (read_sweep(path.parent) for path in tmp_path.glob("sweeps/*/*/sweep.json"))
    assert sweep is not None
    assert not any(point.jobs for point in sweep.points)


@pytest.mark.parametrize("option", ["local", "slurm"])
def test_every_key_of_a_launcher_is_explained(option):
    text = (CONF / f"{option}.yaml").read_text()
    keys = re.findall(r"^(\w+): .*# \S", text, re.MULTILINE)
    assert text.startswith("# ")
    assert set(keys) == set(ConfigStore.instance().repo["schema"]["launcher"][f"{option}.yaml"].node)


def test_a_launcher_option_of_ones_own(tmp_path):
    folder = tmp_path / "hydra" / "launcher"
    folder.mkdir(parents=True)
    (folder / "big.yaml").write_text("# Ours.\ndefaults:\n  - slurm\n  - _self_\nnodes: 4\n")
    launcher = chosen_launcher(compose([*TOY, "hydra/launcher=big"], str(tmp_path)))
    assert isinstance(launcher, Slurm)
    assert launcher.config.nodes == 4


def order(*overrides: str) -> RunOrder:
    return check(compose([*TOY, *overrides], None), [])


@pytest.mark.parametrize(
    ("gpus", "cores", "parallel", "processes", "slots"),
    [
        (0, 2, None, None, [(0, 1), (0, 1)]),
        (0, 64, None, None, [(0, 8)] * 8),
        (0, 4, None, 2, [(0, 2)] * 2),
        (0, 1, None, 2, [(0, 1)]),
        (0, 2, 3, None, [(0, 0)] * 3),
        (8, 64, None, None, [(1, 8)] * 8),
        (8, 64, 2, None, [(4, 32)] * 2),
        (8, 64, None, 4, [(4, 32)] * 2),
        (8, 64, 1, 4, [(8, 64)]),
    ],
)
def test_points_share_the_machine(monkeypatch, gpus, cores, parallel, processes, slots):
    monkeypatch.setattr(local, "visible_gpus", lambda: [str(i) for i in range(gpus)])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    launcher = local.Local(local.Local.Config(parallel))
    found = launcher.slots([order(*([f"processes={processes}"] if processes else []))])
    assert [(len(slot.gpus), slot.cores) for slot in found] == slots
    assert len({gpu for slot in found for gpu in slot.gpus}) == sum(len(slot.gpus) for slot in found)


def test_more_points_at_a_time_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1", "2"])
    with pytest.raises(ConfigError, match=r"at most 1: 2 ranks each, on 3 GPUs"):
        local.Local(local.Local.Config(2)).check([order("processes=2")])


def test_small_points_share_gpus(monkeypatch):
    monkeypatch.setattr(local, "visible_gpus", lambda: ["3", "5"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    slots = local.Local(local.Local.Config(per_gpu=3)).slots([order()])
    assert [(slot.gpus, slot.cores) for slot in slots] == [(("3",), 2), (("5",), 2)] * 3
    few = local.Local(local.Local.Config(parallel=3, per_gpu=3)).slots([order()])
    assert [slot.gpus for slot in few] == [("3",), ("5",), ("3",)]
    for gpus, given, why in [(["0"], "processes=2", "1 for points of 2 ranks each"), ([], "seed=0", "no GPU here")]:
        monkeypatch.setattr(local, "visible_gpus", lambda gpus=gpus: gpus)
        with pytest.raises(ConfigError, match=why):
            local.Local(local.Local.Config(per_gpu=2)).check([order(given)])


def test_a_slot_narrows_the_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    slot = local.Slot(("2", "3"), 8)
    assert slot.ranks(order()) == 2
    assert {"CUDA_VISIBLE_DEVICES": "2,3", "OMP_NUM_THREADS": "4"}.items() <= slot.environment(2).items()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert local.Slot((), 0).environment(1)["OMP_NUM_THREADS"] == "7"


def test_what_slurm_is_asked_for():
    chosen = [
        SLURM, "hydra.launcher.partition=gpu", "hydra.launcher.nodes=4", "hydra.launcher.gpus_per_node=8",
        "hydra.launcher.cpus_per_task=6", "hydra.launcher.mem_gb=0.5", "hydra.launcher.setup=[module load cuda]",
        "hydra.launcher.container=image.sqsh", "hydra.launcher.container_mounts=['/data:/data']",
        "+hydra.launcher.additional_parameters.exclusive=true",
    ]  # fmt: skip
    launcher = chosen_launcher(compose([*TOY, *chosen], None))
    assert isinstance(launcher, Slurm)
    asked = launcher.parameters()
    assert {
        "partition": "gpu",
        "nodes": 4,
        "gpus_per_node": 8,
        "ntasks_per_node": 8,
        "mem": "512M",
    }.items() <= asked.items()
    assert asked["setup"] == [*OFFLINE, "module load cuda"]
    assert asked["additional_parameters"] == {"requeue": True, "exclusive": True}
    assert asked["srun_args"] == [
        "--kill-on-bad-exit=1", "--open-mode=append", "--cpus-per-task=6", "--container-image=image.sqsh",
        f"--container-workdir={Path.cwd()}", "--container-mounts=/data:/data",
    ]  # fmt: skip
    assert "account" not in asked


def states(folder: Path) -> list[State]:
    sweep = read_sweep(folder)
    assert sweep is not None
    return [state_of(folder / point.folder, None, None) for point in sweep.points]


@pytest.mark.parallel
def test_a_failed_point_stops_no_other_and_is_run_again(tmp_path):
    """A learning rate of 1e30 diverges at its second step."""
    command = ["--multirun", *TINY, "train.max_steps=3", "optimizer.lr=1e30,1e-3"]
    folder = tmp_path / "sweeps" / "quickstart" / "s"
    told = wait_for_end(start_run(tmp_path, *command), code=1)
    assert states(folder) == [State.failed, State.completed]
    assert "optimizer.lr=1e+30_" in told.split("ended with exit code 1")[0]
    assert "is not finite" in next(folder.glob("logs/*1e+30_*.log")).read_text()
    assert (folder / "summary.md").exists()
    again = wait_for_end(start_run(tmp_path, *command), code=1)
    assert "2 points: 1 completed, 1 failed; 1 to run" in again


@pytest.mark.parallel
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    command = ["--multirun", *TINY, "train.max_steps=150", "seed=0,1", "hydra.launcher.parallel=1"]
    folder = tmp_path / "sweeps" / "quickstart" / "s"
    process = start_run(tmp_path, *command)
    deadline = time.monotonic() + 120
    while not any('"step": 5,' in file.read_text() for file in folder.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = wait_for_end(process, code=130)
    assert "This goes on with what is left" in told
    assert states(folder) == [State.interrupted, State.missing]
    wait_for_end(start_run(tmp_path, *command))
    assert states(folder) == [State.completed] * 2
    first = next(folder.glob("seed=0_*"))
    assert "resumed at step" in (first / "run.log").read_text()
    assert [row["step"] for row in numbers(first) if row["split"] == "train"] == list(range(1, 151))


@pytest.mark.parallel
def test_without_its_launcher_a_point_saves_and_stops(tmp_path):
    folder = tmp_path / "sweeps" / "quickstart" / "s"
    process = start_run(tmp_path, "--multirun", *TINY, "train.max_steps=100000", "seed=0")
    deadline = time.monotonic() + 120
    while not any('"step": 5,' in file.read_text() for file in folder.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    (point,) = folder.glob("run_*")
    while (read_result(point) or {})["status"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert states(folder) == [State.interrupted]


@pytest.mark.parallel
@pytest.mark.parametrize("whole_terminal", [True, False])
def test_ctrl_c_in_the_first_seconds_is_not_lost(tmp_path, whole_terminal):
    """The server that points are forked from is importing then, and the terminal's Ctrl-C goes to it as well."""
    command = ["--multirun", *TINY, "train.max_steps=100000", "seed=0,1", "hydra.launcher.parallel=1"]
    process = start_run(tmp_path, *command)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("sweeps/*/s/sweep.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    if whole_terminal:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    told = wait_for_end(process, code=130, timeout=120)
    assert "Traceback" not in told
    assert "stopping" in told
    assert State.running not in states(tmp_path / "sweeps" / "quickstart" / "s")


@pytest.mark.parallel
def test_a_sweep_needs_no_standard_input(tmp_path):
    run = [sys.executable, "-m", "orpo_exp", "--multirun", *TINY, "train.max_steps=1", "seed=0"]
    closed = ["sh", "-c", 'exec "$@" 0<&-', "sh", *run]
    done = subprocess.run(closed, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(tmp_path / "sweeps" / "quickstart" / "s") == [State.completed]
