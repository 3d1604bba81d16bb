"""Where numbers go: what a tracker is, and the fan-out that keeps a failing one from ending the training."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from orpo_exp.registry import Registry
from orpo_exp.schema import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """What a tracker may know of the run: its folder, the experiment's name, the resolved configuration as plain
    values, and the number of optimizer steps.

    resumed_from: the step of the checkpoint that it goes on from, 0 at the beginning. What an earlier part of the run
    logged after it (at the beginning: anything) will be logged again.
    """

    folder: Path
    experiment: str
    config: Mapping[str, Any]
    total_steps: int
    resumed_from: int = 0


@dataclass
class TrackerConfig(Settings):
    """Base of every tracker's configuration."""


class Tracker(ABC):
    """One place that numbers go to. It lives on the main rank only and may raise: see Trackers.

    essential: without it the run's numbers would be lost, so that its failure is the run's.
    """

    Config: ClassVar[type[TrackerConfig]] = TrackerConfig
    essential: ClassVar[bool] = False

    def __init__(self, config: TrackerConfig) -> None:
        self.config = config

    def start(self, run: RunInfo) -> None:
        """Called once before the first number."""
        return None

    @abstractmethod
    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """The metrics of the global batch at an optimizer step (split "train"), or of the evaluation set ("eval")
        or, once after training, of the test set ("test")."""

    def flush(self) -> None:
        """Called before a checkpoint is written: a run that goes on from there will not log again what came before."""
        return None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Called once at the end, whatever the end was; `result` is what result.json holds."""
        return None


class Trackers:
    """Hands everything to each tracker in turn.

    One that raises is reported once and left out from then on; an essential one's exception passes through, but for the
    end.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)

    def start(self, run: RunInfo) -> None:
        """See Tracker. One whose start fails or is cut short is never called again."""
        waiting, self.trackers = self.trackers, []
        for tracker in waiting:
            if self._works(tracker, lambda tracker: tracker.start(run), tracker.essential):
                self.trackers.append(tracker)

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        self.trackers = [t for t in self.trackers if self._works(t, lambda t: t.log(step, split, metrics), t.essential)]

    def flush(self) -> None:
        """See Tracker."""
        self.trackers = [t for t in self.trackers if self._works(t, lambda t: t.flush(), t.essential)]

    def finish(self, result: Mapping[str, Any]) -> None:
        """See Tracker."""
        self.trackers = [t for t in self.trackers if self._works(t, lambda t: t.finish(result), essential=False)]

    def _works(self, tracker: Tracker, call: Callable[[Tracker], None], essential: bool) -> bool:
        try:
            call(tracker)
        except Exception as error:  # whatever such a tracker raises, the training goes on
            if essential:
                raise
            name = type(tracker).__name__
            log.warning("%s failed and is switched off for this run: %s: %s", name, type(error).__name__, error)
            log.debug("the failure of %s", name, exc_info=True)
            return False
        return True


TRACKERS: Registry[Tracker] = Registry("tracker")
