"""Preference optimisation experiments: ORPO, its lambda variants and DPO-style baselines, composed with Hydra."""

import os
from typing import Any

# Threads that wait for work sleep instead of spinning. Where something else needs a core too (another run of a sweep, a
# rank, a browser), spinning threads cost a training its speed. Read when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["ORPOTrainer"]


def __getattr__(name: str) -> Any:
    if name == "ORPOTrainer":  # with all of ColossalAI behind it: imported by those alone who ask for it
        from orpo_exp.colossalchat import ORPOTrainer

        return ORPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
