"""ColossalAI plugins: processes, devices, precision, sharding, and how a forward and a backward pass are run."""

from orpo_exp.plugins.base import PLUGINS, Objective, Plugin, PluginConfig, Precision, Which
from orpo_exp.plugins.processes import Place, start_ranks, torchrun_place
from orpo_exp.plugins.ranks import Ranks
from orpo_exp.registry import import_modules

import_modules(__name__, __path__)

__all__ = [
    "PLUGINS",
    "Objective",
    "Place",
    "Plugin",
    "PluginConfig",
    "Precision",
    "Ranks",
    "Which",
    "start_ranks",
    "torchrun_place",
]
