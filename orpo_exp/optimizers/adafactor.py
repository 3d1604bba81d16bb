"""Adafactor."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.optimizers.base import OPTIMIZERS, OptimizerConfig, OptimizerFactory
from orpo_exp.schema import setting


@OPTIMIZERS.register("adafactor")
class Adafactor(OptimizerFactory):
    """Adam that keeps of a matrix's squared gradients the means of rows and columns alone (Shazeer and Stern 2018,
    arXiv 1804.04235, algorithms 4 and 5).

    The step size is the schedule's. The paper's own, relative to the size of each parameter, is not offered: ColossalAI
    takes every parameter's size for 0.
    """

    # Tried with 0.5.0: ZeRO is wrong by some per cent at once, for the means are those of one rank's rows, and summed;
    # tensor parallelism is right in float32 on one replica, unless the vocabulary is padded, and fails on several.
    whole_because = (
        "it takes means over a matrix's whole rows and columns, and ColossalAI's distributed form takes one rank's for "
        "them (ZeRO), counts the rows that pad a vocabulary and fails with several replicas (tensor parallelism)"
    )

    @dataclass
    class Config(OptimizerConfig):
        """beta1: decay of the running mean of updates; None keeps none. decay_rate: the mean of squared gradients after
        step t is decayed by 1 - t^-decay_rate. clip_threshold: the largest root mean square of an update before the
        learning rate. eps: added to squared gradients."""

        beta1: float | None = setting(None, ge=0, lt=1)
        decay_rate: float = setting(0.8, gt=0)
        clip_threshold: float = setting(1.0, gt=0)
        eps: float = setting(1e-30, gt=0)

    config: Config

    @override
    def make(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        from colossalai.nn.optimizer import Adafactor as ColossalAdafactor

        class WholeAdafactor(ColossalAdafactor):
            """ColossalAI leaves it as it is, where it would put a distributed form in the place of its own class."""

        c = self.config
        return WholeAdafactor(
            [group | {"lr": self.lr} for group in self.groups(parameters)],  # its own argument `lr` is ignored
            eps=(c.eps, 1.0),  # the second one is of the relative step size
            clip_threshold=c.clip_threshold,
            decay_rate=-c.decay_rate,
            beta1=c.beta1,
            scale_parameter=False,
            relative_step=False,
        )

    @override
    def state_bytes(self, parameter: Tensor) -> int:
        mean = 0 if self.config.beta1 is None else parameter.nbytes
        return mean + (parameter.nbytes if parameter.ndim < 2 else 4 * rows_and_columns(parameter))  # these in float32


def rows_and_columns(parameter: Tensor) -> int:
    """How many rows and columns a matrix has, or all the matrices in its last two dimensions together."""
    return parameter[..., 0].numel() + parameter[..., 0, :].numel()
