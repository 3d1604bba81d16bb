"""CAME."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.optimizers.adafactor import rows_and_columns
from orpo_exp.optimizers.base import OPTIMIZERS, OptimizerConfig, OptimizerFactory
from orpo_exp.schema import setting


@OPTIMIZERS.register("came")
class CAME(OptimizerFactory):
    """Adafactor with a running mean of updates, which moves less where updates differ from it (Luo et al. 2023,
    arXiv 2307.02047, algorithm 2)."""

    whole_because = (
        "it takes means over a matrix's whole rows and columns, and ColossalAI's distributed form puts those of "
        "squared gradients in the place of those of the instability, from the second step on"
    )

    @dataclass
    class Config(OptimizerConfig):
        """beta1, beta2, beta3: decay of the running means of update, squared gradient and instability. clip_threshold:
        the largest root mean square of an update before its mean is taken. eps1, eps2: added to the squared gradient
        and to the instability."""

        beta1: float = setting(0.9, ge=0, lt=1)
        beta2: float = setting(0.999, ge=0, lt=1)
        beta3: float = setting(0.9999, ge=0, lt=1)
        clip_threshold: float = setting(1.0, gt=0)
        eps1: float = setting(1e-30, gt=0)
        eps2: float = setting(1e-16, gt=0)

    config: Config

    @override
    def make(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        from colossalai.nn.optimizer import CAME as ColossalCAME

        class WholeCAME(ColossalCAME):
            """ColossalAI leaves it as it is; its own class it would replace also where nothing is cut."""

        c = self.config
        return WholeCAME(
            self.groups(parameters),
            lr=self.lr,
            eps=(c.eps1, c.eps2),
            clip_threshold=c.clip_threshold,
            betas=(c.beta1, c.beta2, c.beta3),
        )

    @override
    def state_bytes(self, parameter: Tensor) -> int:
        if parameter.ndim < 2:
            return 2 * parameter.nbytes
        return parameter.nbytes + 2 * rows_and_columns(parameter) * parameter.element_size()
