"""ColossalAI plugins: processes, devices, precision, sharding, and how a forward and a backward pass are run."""

from orpo_exp.plugins.base import PLUGINS, Objective, Plugin, PluginConfig, Precision
from orpo_exp.plugins.processes import Place, start_ranks, torchrun_place
from orpo_exp.registry import import_modules

import_modules(__name__, __path__)

__all__ = [
    "PLUGINS",
    "Objective",
    "Place",
    "Plugin",
    "PluginConfig",
    "Precision",
    "start_ranks",
    "torchrun_place",
]
