"""The numbers for Weights & Biases. The module's name leaves `import wandb` to mean the library."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from typing_extensions import override

from orpo_exp.tracking.base import TRACKERS, RunInfo, Tracker, TrackerConfig

log = logging.getLogger(__name__)

SPLITS = ("train", "eval", "test")  # in the order in which they arrive at one step


class Mode(Enum):
    """Where W&B's numbers go: to its server, to the run's folder for a later `wandb sync`, or nowhere."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


def run_id(folder: Path) -> str:
    """The W&B id of the run in a folder: the same folder is the same run, so that a resumed run goes on in it."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


@TRACKERS.register("wandb")
class WandB(Tracker):
    """Metrics as `train/<metric>`, `eval/<metric>`, `test/<metric>` over `step`, with the configuration and the end.

    Disabled, nothing is imported. W&B finds its key by itself (environment, netrc); it passes through nothing here.
    """

    @dataclass
    class Config(TrackerConfig):
        """mode: see Mode; project, entity, group, tags, name: where and as what W&B files the run."""

        mode: Mode = Mode.disabled
        project: str = "orpo_exp"
        entity: str | None = None
        group: str | None = None
        tags: list[str] = field(default_factory=list)
        name: str | None = None

    config: Config
    _run: Any = None

    @override
    def start(self, run: RunInfo) -> None:
        """Begin the W&B run, or go on with it. Raises RuntimeError where the mode is online and there is no key."""
        c = self.config
        if c.mode is Mode.disabled:
            return
        import wandb

        quiet = wandb.Settings(
            mode=c.mode.value,
            silent=True,
            console="off",  # the console has a tracker of its own
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_stats=True,  # measuring the machine asks addresses of the cloud it might run in
            x_disable_meta=True,  # command line, host and user are nobody's business
            x_save_requirements=False,
        )
        wandb.setup(settings=quiet)
        # never wait for someone to type a key
        if c.mode is Mode.online and not wandb.login(prompt=False, verify=False):
            raise RuntimeError(
                "no W&B key found. Run `wandb login`, set WANDB_API_KEY, or use tracker.wandb.mode=offline"
            )
        self._run = wandb.init(
            id=run_id(run.folder),
            resume="allow",
            dir=str(run.folder),
            project=c.project,
            entity=c.entity,
            group=c.group,
            tags=list(c.tags),
            name=c.name or run.folder.name,
            config=dict(run.config),
            settings=quiet,
        )
        # W&B's own step only ever grows, and train and eval arrive at the same one: ours is a metric like others
        for split in SPLITS:
            self._run.define_metric(f"{split}/*", step_metric="step")
        if c.mode is Mode.online:
            log.info("W&B: %s", self._run.url)

    @override
    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if self._run is not None:
            # W&B drops what lies at or before the last number it has: a resumed run's repeated steps, which are equal
            place = len(SPLITS) * step + SPLITS.index(split)
            self._run.log({"step": step, **{f"{split}/{name}": value for name, value in metrics.items()}}, step=place)

    @override
    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the summary and end the W&B run: as finished where the run completed or waits, else as failed."""
        if self._run is None:
            return
        import wandb

        status = result.get("status")
        for split in ("eval", "test"):
            self._run.summary.update({f"{split}/{name}": value for name, value in (result.get(split) or {}).items()})
        self._run.summary.update({"status": status})
        self._run.finish(exit_code=0 if status in ("completed", "waiting") else 1)
        if wandb.run is None:  # unless someone has a run of their own in this process
            wandb.teardown()  # waits until the last number is on disk, which finish() does not
        if self.config.mode is Mode.offline:
            log.info("W&B: to upload this run: wandb sync %s", Path(self._run.dir).parent)
