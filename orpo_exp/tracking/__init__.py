"""Where numbers go: console, JSONL, TensorBoard, W&B."""

from orpo_exp.registry import import_modules
from orpo_exp.tracking.base import TRACKERS, RunInfo, Tracker, TrackerConfig, Trackers

import_modules(__name__, __path__)

__all__ = ["TRACKERS", "RunInfo", "Tracker", "TrackerConfig", "Trackers"]
