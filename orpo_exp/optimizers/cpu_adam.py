"""ColossalAI's CPUAdam."""

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.optimizers.adamw import AdamW
from orpo_exp.optimizers.base import OPTIMIZERS
from orpo_exp.optimizers.kernels import lacking_compiler, loading_kernels, resumable


@OPTIMIZERS.register("cpu_adam")
class CPUAdam(AdamW):
    """AdamW by ColossalAI's kernel for CPUs, made for parameters that are kept in the host's memory."""

    @classmethod
    @override
    def lacking(cls) -> str | None:
        return lacking_compiler()

    @override
    def make(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        c = self.config
        with loading_kernels():
            from colossalai.nn.optimizer import CPUAdam as ColossalCPUAdam

            made = ColossalCPUAdam(self.groups(parameters), lr=self.lr, betas=(c.beta1, c.beta2), eps=c.eps)
        return resumable(made)
