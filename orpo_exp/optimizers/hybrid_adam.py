"""ColossalAI's HybridAdam."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.optimizers.adamw import AdamW
from orpo_exp.optimizers.base import OPTIMIZERS
from orpo_exp.optimizers.kernels import lacking_compiler, lacking_cuda, loading_kernels, resumable


@OPTIMIZERS.register("hybrid_adam")
class HybridAdam(AdamW):
    """AdamW by ColossalAI's kernels: each parameter is updated where it lies, on the CPU or on a GPU."""

    @classmethod
    @override
    def lacking(cls) -> str | None:
        return lacking_cuda() if torch.cuda.is_available() else lacking_compiler()

    @override
    def make(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        c = self.config
        with loading_kernels():
            from colossalai.nn.optimizer import HybridAdam as ColossalHybridAdam

            made = ColossalHybridAdam(self.groups(parameters), lr=self.lr, betas=(c.beta1, c.beta2), eps=c.eps)
        return resumable(made)
