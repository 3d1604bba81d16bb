"""Log-probabilities -> terms and metrics, and the schedules of their weights. A loss never sees a mask or padding."""

from orpo_exp.losses.base import LOSSES, Loss, LossConfig, Scope
from orpo_exp.losses.schedules import LAM_SCHEDULES, LamSchedule, LamScheduleConfig
from orpo_exp.registry import import_modules

import_modules(__name__, __path__)

__all__ = ["LAM_SCHEDULES", "LOSSES", "LamSchedule", "LamScheduleConfig", "Loss", "LossConfig", "Scope"]
