"""Runs on a cluster: each a Slurm job of one task per rank, a sweep's points together as an array."""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from orpo_exp.launchers import cluster
from orpo_exp.launchers.base import LAUNCHERS, Elsewhere, Finding, Launcher, LauncherConfig
from orpo_exp.launchers.job import Entry, SlurmTask
from orpo_exp.runs.order import RunOrder
from orpo_exp.runs.states import slurm_queue
from orpo_exp.schema import ConfigError, setting
from orpo_exp.sweeps.progress import follow, follow_run
from orpo_exp.sweeps.sweep_file import Sweep, change_sweep
from orpo_exp.sweeps.turns import Stages, Turn

# submitit counts how often a job ran into its time limit. A run that comes back goes on: no number is too many.
REQUEUES = 1_000_000
# What a hub holds was fetched where the command was given: jobs ask none, for a node may have no network. Who has set
# these variables otherwise, there or in `setup`, has the say.
OFFLINE = [f"export {name}=${{{name}:-1}}" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")]
# What submitit calls the same.
SAME = ("partition", "account", "qos", "constraint", "nodes", "gpus_per_node", "cpus_per_task", "signal_delay_s")


@LAUNCHERS.register("slurm")
class Slurm(Launcher):
    """Submits by submitit and leaves, or follows where `wait` says so."""

    @dataclass
    class Config(LauncherConfig):
        """What sbatch is asked for; None: the cluster's default. Times in minutes and seconds, memory in GB per node.

        additional_parameters: further options of sbatch, name to value. python: the command that starts Python there.
        """

        partition: str | None = None
        account: str | None = None
        qos: str | None = None
        constraint: str | None = None
        nodes: int = setting(1, ge=1)
        gpus_per_node: int | None = setting(None, ge=0)
        tasks_per_node: int | None = setting(None, ge=1)
        cpus_per_task: int | None = setting(None, ge=1)
        mem_gb: float | None = setting(None, gt=0)
        timeout_min: int = setting(240, ge=1)
        signal_delay_s: int = setting(120, ge=1)
        array_parallelism: int = setting(64, ge=1)
        setup: list[str] = field(default_factory=list)
        additional_parameters: dict[str, Any] = field(default_factory=dict)
        container: str | None = None
        container_mounts: list[str] = field(default_factory=list)
        python: str | None = None
        wait: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.signal_delay_s >= 60 * self.timeout_min:
                allowed = f"less than the {60 * self.timeout_min} seconds of timeout_min"
                raise ConfigError("signal_delay_s", self.signal_delay_s, allowed, "Lower it, or raise timeout_min.")
            if self.container_mounts and self.container is None:
                raise ConfigError("container_mounts", self.container_mounts, "nothing without a container", "Name one.")

    config: Config

    @override
    def check(self, orders: Sequence[RunOrder]) -> None:
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            allowed = "a machine with Slurm's sbatch and srun"
            raise ConfigError("hydra/launcher", "slurm", allowed, "Go to the cluster's login node, or choose local.")
        if given := next((order.config.processes for order in orders if order.config.processes), None):
            do = "Say how many with hydra.launcher.nodes and hydra.launcher.tasks_per_node."
            raise ConfigError("processes", given, "null: on a cluster there is a rank for each task", do)

    @override
    def run(self, order: RunOrder, entry: Entry) -> int:
        folder = order.folder.absolute()
        refuse_submitted(folder)
        job = SlurmTask(entry, Turn(replace(order, folder=folder)), None)
        (job_id,) = self.submit(folder / "logs", order.experiment, [job])
        print(
            f"submitted as job {job_id}\n"
            f"  run   {folder}\n"
            f"  logs  {folder}/logs/{job_id}_<rank>_log.out\n"
            f"  look  squeue --job {job_id}; tail -F {folder}/run.log\n"
            f"  stop  scancel {job_id}"
        )
        return follow_run(folder, job_id) if self.config.wait else 0

    @override
    def sweep(self, folder: Path, stages: Stages, entry: Entry) -> int:
        """An array for each stage, all of them submitted now: nobody waits here for the one before."""
        arrays: list[list[str]] = []
        jobs: dict[str, list[str]] = {}
        unknown: dict[str, str] = {}
        for stage in stages:
            tasks = [SlurmTask(entry, turn, folder) for turn in stage]
            before = array_of(arrays[-1]) if arrays else None
            try:
                arrays.append(self.submit(folder / "logs", stage[0].like.experiment, tasks, before))
            except ConfigError:  # as none of the stages was submitted, which its message says
                if arrays:
                    subprocess.run(["scancel", *map(array_of, arrays)], check=False)
                raise
            for turn, job_id in zip(stage, arrays[-1], strict=True):
                if turn.point:
                    jobs.setdefault(turn.point, []).append(job_id)
                else:
                    unknown[turn.name] = job_id
        note_jobs(folder, jobs, unknown)
        spans = [
            ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}, at most {self.config.array_parallelism} at a time"
            for ids in arrays
        ]
        first, *later = [
            f"{len(ids)} points as job {array_of(ids)}: {span}" for ids, span in zip(arrays, spans, strict=True)
        ]
        print(
            f"submitted {first}\n"
            + "".join(f"  then, once these have ended, {text}\n" for text in later)
            + f"  sweep  {folder}\n"
            f"  logs   {folder}/logs/<job>_<rank>_log.out\n"
            f"  look   python -m orpo_exp.sweeps.status {folder}\n"
            f"  stop   scancel {' '.join(map(array_of, reversed(arrays)))}\n"
            f"Each point that ends rebuilds {folder}/summary.md; nobody has to wait for it."
        )
        return follow(folder) if self.config.wait else 0

    @property
    def tasks_per_node(self) -> int:
        """Ranks on each node."""
        return self.config.tasks_per_node or self.config.gpus_per_node or 1

    @property
    def memory_mb(self) -> int | None:
        """On each node; None: the cluster's default."""
        return round(1024 * self.config.mem_gb) if self.config.mem_gb else None

    @override
    def time_limit(self) -> float:
        return 60.0 * self.config.timeout_min

    @override
    def at_a_time(self, orders: Sequence[RunOrder]) -> int:
        return min(self.config.array_parallelism, len(orders))

    @override
    def elsewhere(self) -> Elsewhere:
        """Of a GPU's memory nothing is known here."""
        ranks, gpus = self.config.nodes * self.tasks_per_node, self.config.gpus_per_node
        if gpus:
            return Elsewhere(ranks, "cuda", 1, None)
        return Elsewhere(ranks, "cpu", self.tasks_per_node, self.memory_mb and self.memory_mb * 2**20)

    @override
    def findings(self) -> list[Finding]:
        config = self.config
        cores = self.tasks_per_node * (config.cpus_per_task or 1)
        asked = (config.partition, config.nodes, config.gpus_per_node or 0, cores, self.memory_mb, config.timeout_min)
        return cluster.findings(cluster.Asked(*asked))

    def submit(self, logs: Path, name: str, tasks: Sequence[SlurmTask], after: str | None = None) -> list[str]:
        """Submit all at once and return their job ids. after: the job that has to end first, however it does.

        Raises ConfigError with what sbatch says where it refuses.
        """
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError

        executor = SlurmExecutor(logs, max_num_timeout=REQUEUES, python=self.config.python)
        executor.update_parameters(job_name=re.sub(r"\W", "_", name), **self.parameters(after))
        try:
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except FailedJobError as refused:
            do = "Correct the launcher's settings; nothing was submitted."
            raise ConfigError("hydra/launcher", "slurm", "what sbatch accepts", f"{refused} {do}") from refused
        return [job.job_id for job in jobs]

    def parameters(self, after: str | None = None) -> dict[str, Any]:
        """The settings as submitit takes them. after: see submit."""
        config = self.config
        srun = ["--kill-on-bad-exit=1", "--open-mode=append"]
        if config.cpus_per_task:
            srun.append(f"--cpus-per-task={config.cpus_per_task}")  # srun no longer takes it over from sbatch
        if config.container:
            srun += [f"--container-image={config.container}", f"--container-workdir={Path.cwd()}"]
        if config.container_mounts:
            srun.append(f"--container-mounts={','.join(config.container_mounts)}")
        asked = {name: getattr(config, name) for name in SAME} | {
            "ntasks_per_node": self.tasks_per_node,
            "mem": f"{self.memory_mb}M" if self.memory_mb else None,
            "time": config.timeout_min,
            "array_parallelism": config.array_parallelism,
            "setup": [*OFFLINE, *config.setup],
        }
        given = {name: value for name, value in asked.items() if value not in (None, 0, [])}
        # a preempted job comes back also where the cluster's default is to end it; submitit's own wckey is nobody's
        extra = {"requeue": True, **config.additional_parameters}
        if after:
            extra["dependency"] = ",".join([f"afterany:{after}", *filter(None, [extra.get("dependency")])])
        return given | {"srun_args": srun, "additional_parameters": extra, "wckey": None, "stderr_to_stdout": True}


def refuse_submitted(folder: Path) -> None:
    """Refuse with ConfigError a run's folder of which a job still waits or runs: two would write there."""
    queue = slurm_queue() or {}
    for script in (folder / "logs").glob("*_submission.sh"):  # submitit leaves one for each job
        job_id = script.name.partition("_")[0]
        if job_id in queue:
            allowed = f"a folder of which Slurm has no job; it has {job_id}: {queue[job_id]}"
            raise ConfigError("hydra.run.dir", str(folder), allowed, f"Wait for it, or stop it: scancel {job_id}.")


def array_of(ids: Sequence[str]) -> str:
    """The number of the array that these jobs are of."""
    return ids[0].partition("_")[0]


def note_jobs(folder: Path, ids: Mapping[str, Sequence[str]], later: Mapping[str, str] | None = None) -> None:
    """Write each point's jobs, by its folder's name and in the order of the stages, into sweep.json. later: those of
    turns whose points are not known yet."""

    def noted(sweep: Sweep | None) -> Sweep:
        assert sweep is not None
        points = [point.submitted(ids[point.folder]) if point.folder in ids else point for point in sweep.points]
        return replace(sweep, points=points, later=sweep.later | dict(later or {}))

    change_sweep(folder, noted)
