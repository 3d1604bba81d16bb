"""Preference optimisation experiments: ORPO, its lambda variants and DPO-style baselines, composed with Hydra."""

import importlib
import os
from typing import Any

# Threads that wait for work sleep instead of spinning. Where something else needs a core too (another run of a sweep, a
# rank, a browser), spinning threads cost a training its speed. Read when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What is offered to Python, and where it is: imported by those alone who ask for it.
_PLACES = {"ORPOTrainer": "colossalchat"} | dict.fromkeys(("compose", "run", "sweep", "loss", "logps"), "api")

__all__ = ["ORPOTrainer", "compose", "logps", "loss", "run", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
