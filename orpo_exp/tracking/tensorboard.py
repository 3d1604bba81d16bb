"""The numbers for TensorBoard: `tensorboard --logdir outputs` shows every run below a folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

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
    subfolder: ClassVar[str] = "tensorboard"
    _writer: "SummaryWriter | None" = None

    @override
    def start(self, run: RunInfo) -> None:
        """Open the folder. Of what an earlier part of the run wrote TensorBoard drops what is to be repeated."""
        from omegaconf import OmegaConf
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / self.subfolder
        repeated_from = run.resumed_from + 1 if run.resumed_from else 0
        self._writer = SummaryWriter(
            str(folder), purge_step=repeated_from if folder.exists() else None, flush_secs=self.config.flush_seconds
        )
        if not run.resumed_from:
            text = OmegaConf.to_yaml(OmegaConf.create(dict(run.config)))
            self._writer.add_text("config", "\n".join("    " + line for line in text.splitlines()))  # a code block

    @override
    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        assert self._writer is not None, "log() before start()"
        for name, value in metrics.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    @override
    def flush(self) -> None:
        assert self._writer is not None, "flush() before start()"
        self._writer.flush()

    @override
    def finish(self, result: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._writer.close()
