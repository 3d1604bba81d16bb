"""When things happen: step, evaluate, sample, stop."""

from orpo_exp.training.loop import Loop
from orpo_exp.training.metrics import TrainingDiverged
from orpo_exp.training.samples import answers, write_samples

__all__ = ["Loop", "TrainingDiverged", "answers", "write_samples"]
