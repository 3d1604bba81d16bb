"""LAMB."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.optimizers.base import OPTIMIZERS, OptimizerConfig, OptimizerFactory
from orpo_exp.schema import setting


@OPTIMIZERS.register("lamb")
class Lamb(OptimizerFactory):
    """Adam whose step is a share of the parameter's own norm (You et al. 2020, arXiv 1904.00962, algorithm 2).

    As in the paper's third version the running means are not corrected for beginning at 0: the length of a step does
    not depend on that. Cut parameters are updated by ColossalAI's distributed form, with norms over all ranks.
    """

    distributed = True

    @dataclass
    class Config(OptimizerConfig):
        """lr: as in OptimizerConfig, but as a share of each parameter's norm, and not taken from the model: the paper's
        for 512 examples a step, its smallest batch. beta1, beta2: decay of the running means of gradient and squared
        gradient; eps: added to the divisor."""

        lr: float | None = setting(6.25e-4, gt=0)
        beta1: float = setting(0.9, ge=0, lt=1)
        beta2: float = setting(0.999, ge=0, lt=1)
        eps: float = setting(1e-6, gt=0)

    config: Config

    @override
    def make(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        from colossalai.logging import get_dist_logger
        from colossalai.nn.optimizer import Lamb as ColossalLamb

        get_dist_logger().set_level("WARNING")  # it would tell of its distributed form in the middle of the run's lines
        c = self.config
        return ColossalLamb(self.groups(parameters), lr=self.lr, betas=(c.beta1, c.beta2), eps=c.eps)

    @override
    def state_bytes(self, parameter: Tensor) -> int:
        return 2 * parameter.nbytes
