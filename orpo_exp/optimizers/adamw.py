"""AdamW."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.optimizers.base import OPTIMIZERS, OptimizerConfig, OptimizerFactory
from orpo_exp.schema import setting


@OPTIMIZERS.register("adamw")
class AdamW(OptimizerFactory):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), in torch's fused form."""

    elementwise = True

    @dataclass
    class Config(OptimizerConfig):
        """beta1, beta2: decay of the running means of gradient and squared gradient; eps: floor of the divisor."""

        beta1: float = setting(0.9, ge=0, lt=1)
        beta2: float = setting(0.999, ge=0, lt=1)
        eps: float = setting(1e-8, gt=0)

    config: Config

    @override
    def make(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        c = self.config
        return TorchAdamW(self.groups(parameters), lr=self.lr, betas=(c.beta1, c.beta2), eps=c.eps, fused=True)

    @override
    def state_bytes(self, parameter: Tensor) -> int:
        return 2 * parameter.nbytes
