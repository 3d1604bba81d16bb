"""Stochastic gradient descent."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import SGD as TorchSGD
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.optimizers.base import OPTIMIZERS, OptimizerConfig, OptimizerFactory
from orpo_exp.schema import setting


@OPTIMIZERS.register("sgd")
class SGD(OptimizerFactory):
    """Plain gradient descent with optional momentum. A gradient wrong by a factor shows here, where AdamW hides it."""

    elementwise = True

    @dataclass
    class Config(OptimizerConfig):
        """lr: as in OptimizerConfig, but for its default; momentum: how much of the last update is kept."""

        lr: float | None = setting(0.1, gt=0)
        momentum: float = setting(0.0, ge=0, lt=1)

    config: Config

    @override
    def make(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return TorchSGD(self.groups(parameters), lr=self.lr, momentum=self.config.momentum)

    @override
    def state_bytes(self, parameter: Tensor) -> int:
        return parameter.nbytes if self.config.momentum else 0
