"""The numbers for TensorBoard: `tensorboard --logdir outputs` shows every run below a folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orpo_exp.schema import setting
from orpo_exp.tracking.base import TRACKERS, RunInfo, Tracker, TrackerConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@TRACKERS.register("tensorboard")
class TensorBoard(Tracker):
    """Scalars `train/<metric>` and `eval/<metric>` in <run folder>/tensorboard, and the configuration as text."""

    @dataclass
    class Config(TrackerConfig):
        """flush_seconds: how long a number may wait before it is on disk."""

        flush_seconds: int = setting(30, ge=1)

    config: Config
    _writer: "SummaryWriter | None" = None

    def start(self, run: RunInfo) -> None:
        """Nothing is opened yet: see `_open`."""
        self._run = run

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Add one scalar for each metric."""
        self._writer = self._writer or self._open(step)
        for name, value in metrics.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, step: int) -> "SummaryWriter":
        """The writer, opened at the first number: its step says which later points of an earlier part of the run are
        about to be repeated, and TensorBoard then drops them."""
        from omegaconf import OmegaConf
        from torch.utils.tensorboard import SummaryWriter

        folder = self._run.folder / "tensorboard"
        resumed = folder.exists()
        writer = SummaryWriter(
            str(folder), purge_step=step + 1 if resumed else None, flush_secs=self.config.flush_seconds
        )
        if not resumed:
            text = OmegaConf.to_yaml(OmegaConf.create(dict(self._run.config)))
            writer.add_text("config", "\n".join("    " + line for line in text.splitlines()))  # a Markdown code block
        return writer
