"""Launchers: where runs and the points of a sweep are run."""

from orpo_exp.launchers.base import LAUNCHERS, Elsewhere, Finding, Launcher, LauncherConfig
from orpo_exp.registry import import_modules

import_modules(__name__, __path__)

__all__ = ["LAUNCHERS", "Elsewhere", "Finding", "Launcher", "LauncherConfig"]
