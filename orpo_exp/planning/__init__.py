"""What a run will need, told before it is started: steps, memory, time. Nothing is written."""

from orpo_exp.planning.command import plan_run, plan_sweep

__all__ = ["plan_run", "plan_sweep"]
