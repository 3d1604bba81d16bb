"""Load or make a causal language model and its tokenizer."""

from orpo_exp.models.base import MODELS, CausalLM, ModelConfig, ModelSource
from orpo_exp.registry import import_modules

import_modules(__name__, __path__)

__all__ = ["MODELS", "CausalLM", "ModelConfig", "ModelSource"]
