"""What of a model is trained: all of it, or an adapter beside weights that stay as they are."""

from orpo_exp.adapters.base import ADAPTERS, Adapter, AdapterConfig
from orpo_exp.registry import import_modules

import_modules(__name__, __path__)

__all__ = ["ADAPTERS", "Adapter", "AdapterConfig"]
