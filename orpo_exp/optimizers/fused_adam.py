"""ColossalAI's FusedAdam."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.optimizers.adamw import AdamW
from orpo_exp.optimizers.base import OPTIMIZERS
from orpo_exp.optimizers.kernels import lacking_cuda, loading_kernels


@OPTIMIZERS.register("fused_adam")
class FusedAdam(AdamW):
    """AdamW by ColossalAI's kernel for GPUs, which updates many parameters in one call."""

    needs_gpu = True

    @classmethod
    @override
    def lacking(cls) -> str | None:
        return lacking_cuda()

    @override
    def make(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        c = self.config
        with loading_kernels():
            from colossalai.nn.optimizer import FusedAdam as ColossalFusedAdam

            made = ColossalFusedAdam(self.groups(parameters), lr=self.lr, betas=(c.beta1, c.beta2), eps=c.eps)
        return counted(made)


def counted(optimizer: Optimizer) -> Optimizer:
    """The same optimizer, its number of steps in the state of each parameter.

    FusedAdam has it in the parameter groups. These are settings, which a resumed run takes from its configuration: it
    would count from 0 again.
    """

    def before(optimizer: Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for state in states(group):
                group["step"] = state["step"]

    def after(optimizer: Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for state in states(group):
                state["step"] = group["step"]

    def states(group: dict[str, Any]) -> list[dict[str, Any]]:
        return [optimizer.state[p] for p in group["params"] if p in optimizer.state]

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer
