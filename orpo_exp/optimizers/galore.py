"""GaLore."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.optimizers.base import OPTIMIZERS, OptimizerConfig, OptimizerFactory
from orpo_exp.schema import ConfigError, setting


class Projection(Enum):
    """The side of a gradient's matrix that becomes short: std the shorter one, reverse_std the longer one, right the
    columns', left the rows'."""

    std = "std"
    reverse_std = "reverse_std"
    right = "right"
    left = "left"


@OPTIMIZERS.register("galore")
class GaLore(OptimizerFactory):
    """AdamW whose means of a matrix's gradients lie in the space of its largest singular vectors (Zhao et al. 2024,
    arXiv 2403.03507, algorithm 2).

    The authors' form with states in float32, which ColossalAI hands on. Its own one in 8 bits needs a GPU, and writes a
    gradient into the working folder at each step.
    """

    whole_because = (
        "it takes singular vectors of whole gradients, and ColossalAI has a distributed form of its 8-bit variant alone"
    )

    @dataclass
    class Config(OptimizerConfig):
        """rank: of what a gradient is projected to; matrices without a side above it are updated as by AdamW.
        update_proj_gap: steps after which the singular vectors are taken anew. scale: what a projected update is
        multiplied by besides the learning rate. proj_type: see Projection. beta1, beta2, eps: as in AdamW."""

        rank: int = setting(128, ge=1)
        update_proj_gap: int = setting(200, ge=1)
        scale: float = setting(0.25, gt=0)
        proj_type: Projection = Projection.std
        beta1: float = setting(0.9, ge=0, lt=1)
        beta2: float = setting(0.999, ge=0, lt=1)
        eps: float = setting(1e-6, gt=0)

    config: Config

    @override
    def make(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        from colossalai.nn.optimizer import GaLoreAdamW

        c = self.config
        groups = self.groups(parameters)
        made = GaLoreAdamW(groups, lr=self.lr, betas=(c.beta1, c.beta2), eps=c.eps, no_deprecation_warning=True)
        return of_tensors(made)

    @override
    def state_bytes(self, parameter: Tensor) -> int:
        rank, kind = self.config.rank, self.config.proj_type
        if parameter.ndim != 2 or min(parameter.shape) <= rank:
            return 2 * parameter.nbytes
        rows, columns = parameter.shape
        short, long = sorted(parameter.shape)
        left = {Projection.std: long, Projection.reverse_std: short, Projection.right: rows, Projection.left: columns}
        # two means of what is left of the matrix, and the singular vectors of the side that was shortened
        return rank * (left[kind] + rows + columns) * parameter.element_size()

    @override
    def groups(self, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """As for any optimizer, the matrices that are projected in a group of their own.

        Raises ConfigError where there are none.
        """
        c = self.config
        matrices, vectors = super().groups(parameters)
        side = {p: min(p.shape) if p.ndim == 2 else 0 for p in matrices["params"]}
        if (most := max(side.values(), default=0)) <= c.rank:
            allowed = f"a whole number below {most}, the shorter side of this model's largest matrices"
            raise ConfigError("optimizer.rank", c.rank, allowed, "Choose a smaller one; a quarter of it is usual.")
        projection = {
            "rank": c.rank,
            "update_proj_gap": c.update_proj_gap,
            "scale": c.scale,
            "proj_type": c.proj_type.value,
        }
        large, small = [p for p in side if side[p] > c.rank], [p for p in side if side[p] <= c.rank]
        return [matrices | {"params": large} | projection, matrices | {"params": small}, vectors]


def of_tensors(optimizer: Optimizer) -> Optimizer:
    """The same optimizer, whose state between its steps has a projector's matrix and not the object around it, which no
    checkpoint could hold."""
    from galore_torch.galore_projector import GaLoreProjector  # type: ignore[import-untyped]

    def before(optimizer: Optimizer, *_: object) -> None:
        for group, state in projected():
            if "matrix" in state:
                settings = {name: group[name] for name in ("rank", "update_proj_gap", "scale", "proj_type")}
                state["projector"] = GaLoreProjector(**settings)
                state["projector"].ortho_matrix = state.pop("matrix")

    def after(optimizer: Optimizer, *_: object) -> None:
        for _group, state in projected():
            # as it comes from a file: products of other strides are rounded otherwise
            state["matrix"] = state.pop("projector").ortho_matrix.contiguous()

    def projected() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        for group in optimizer.param_groups:
            if "rank" in group:
                yield from ((group, optimizer.state[p]) for p in group["params"] if p in optimizer.state)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer
