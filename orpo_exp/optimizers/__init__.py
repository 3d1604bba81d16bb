"""Optimizers and learning-rate schedules."""

from orpo_exp.optimizers.base import OPTIMIZERS, SCHEDULERS, OptimizerConfig, OptimizerFactory, SchedulerConfig
from orpo_exp.registry import import_modules

import_modules(__name__, __path__)

__all__ = ["OPTIMIZERS", "SCHEDULERS", "OptimizerConfig", "OptimizerFactory", "SchedulerConfig"]
