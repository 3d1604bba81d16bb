"""For those who come from ColossalChat: its ORPOTrainer over this package's loop and loss."""

from orpo_exp.colossalchat.trainer import ORPOTrainer

__all__ = ["ORPOTrainer"]
