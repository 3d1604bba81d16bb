"""Load or make a causal language model and its tokenizer."""

from orpo_exp.models.base import MODELS, CausalLM, ModelConfig, ModelSource
from orpo_exp.models.segments import LOOKED_UP
from orpo_exp.registry import import_modules

import_modules(__name__, __path__)

__all__ = ["LOOKED_UP", "MODELS", "CausalLM", "ModelConfig", "ModelSource"]
