"""The command line as a user of the cluster gives it, and waiting for what comes of it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.cluster import Cluster

from orpo_exp.runs.states import read_result

TINY = [
    "+experiment=quickstart", "train.max_steps=4", "train.global_batch_size=4", "train.micro_batch_size=4",
    "train.samples=0", "train.eval_every=0", "data.eval_pairs=8", "tracker=[]", "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=30",
]  # fmt: skip

# A tracker that takes a tenth of a second for each step: runs last as long on a fast machine as on a slow one.
SLOW = """
import time
from dataclasses import dataclass

from orpo_exp.tracking.base import TRACKERS, Tracker, TrackerConfig


@TRACKERS.register("slow")
class Slow(Tracker):
    @dataclass
    class Config(TrackerConfig):
        pass

    def log(self, step, split, metrics):
        time.sleep(0.1)
"""
SLOW_YAML = """# @package tracker.slow
# Takes its time.
defaults:
  - /schema/tracker/slow@_here_
"""


@dataclass
class Commands:
    """Gives commands in a folder. In it lies a component from outside, which the jobs have to find too."""

    cluster: Cluster
    folder: Path

    def __post_init__(self) -> None:
        mine = self.folder / "mine"
        (mine / "conf" / "tracker").mkdir(parents=True)
        (mine / "slow_tracker.py").write_text(SLOW)
        (mine / "conf" / "tracker" / "slow.yaml").write_text(SLOW_YAML)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command."""
        environment = self.cluster.environment | {
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ORPO_EXP_PATH": str(self.folder / "mine"),
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-m", "orpo_exp", *TINY, *arguments],
            cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def give(self, *arguments: str, code: int = 0) -> str:
        """Give a command and return what it printed."""
        process = self.start(*arguments)
        try:
            output, _ = process.communicate(timeout=240)
        finally:
            process.kill()
        assert process.returncode == code, output
        return output

    def submit(self, *arguments: str, until: str) -> str:
        """Give a command and kill it as soon as it has printed a line with these words; what it printed."""
        process = self.start(*arguments)
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if until in line:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return said

    def result(self, run: str) -> dict[str, Any]:
        """What result.json of a run says now; nothing before it has begun."""
        return read_result(self.folder / run) or {}

    def wait_for(self, condition: Callable[[], bool], seconds: float = 400) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it took too long; {self.logs()}"
            time.sleep(0.5)

    def wait_until_ended(self) -> None:
        """Wait until Slurm has ended all jobs."""
        self.wait_for(lambda: not self.cluster.jobs())

    def logs(self) -> str:
        """What the jobs said, for a test that fails."""
        return "\n".join(f"{file}:\n{file.read_text()[-3000:]}" for file in self.folder.rglob("*_log.out"))
