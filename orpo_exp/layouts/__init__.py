"""How several pairs become the inputs of one forward pass: padding, masks and positions are known here alone."""

from orpo_exp.layouts.base import LAYOUTS, Layout, LayoutConfig
from orpo_exp.registry import import_modules

import_modules(__name__, __path__)

__all__ = ["LAYOUTS", "Layout", "LayoutConfig"]
