"""Products of two small matrices beside large ones that stay as they are, by peft: LoRA, DoRA, rsLoRA."""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from orpo_exp.adapters.base import ADAPTERS, AdapterConfig
from orpo_exp.adapters.peft import PeftAdapter
from orpo_exp.schema import ConfigError, setting

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


class Init(Enum):
    """How the two matrices begin, under peft's names.

    kaiming and gaussian: one at random, the other at zero. orthogonal: both at random, their product zero; of even
    ranks. pissa: with the largest singular vectors of the weight, which leaves it without them (Meng et al. 2024, arXiv
    2404.02948); pissa_niter_16: nearly those, found much faster. olora: with its QR factors (Büyükakyüz 2024, arXiv
    2406.01775).
    """

    kaiming = "kaiming"
    gaussian = "gaussian"
    orthogonal = "orthogonal"
    pissa = "pissa"
    pissa_niter_16 = "pissa_niter_16"
    olora = "olora"

    @property
    def rewrites(self) -> bool:
        """Whether the weights beside which it is put are others afterwards."""
        return self in (Init.pissa, Init.pissa_niter_16, Init.olora)


@dataclass
class LoRAConfig(AdapterConfig):
    """rank: columns of the one matrix and rows of the other. alpha: the product is multiplied by alpha / rank (rslora:
    by its root). targets: names of the modules beside which it is put, or all-linear alone: every linear one but the
    head. whole: names of modules that are trained whole. init: how it begins. merge: whether model/ holds the whole
    model, with the product added in."""

    rank: int = setting(8, ge=1)
    alpha: float = setting(16.0, gt=0)
    dropout: float = setting(0.0, ge=0, lt=1)
    targets: list[str] = field(default_factory=lambda: [ALL_LINEAR])
    whole: list[str] = field(default_factory=list)
    init: Init = Init.kaiming
    merge: bool = setting(False, affects_numbers=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets or (ALL_LINEAR in self.targets and len(self.targets) > 1):
            allowed = f"[{ALL_LINEAR}], or names of modules, e.g. [q_proj,v_proj]"
            raise ConfigError("targets", self.targets, allowed, "Choose one of the two.")


@ADAPTERS.register("lora")
class LoRA(PeftAdapter):
    """Hu et al. 2021, arXiv 2106.09685."""

    Config = LoRAConfig
    config: LoRAConfig
    use_dora: ClassVar[bool] = False
    use_rslora: ClassVar[bool] = False

    @property
    @override
    def dropout(self) -> float:
        return self.config.dropout

    @override
    def check(self, base: str | None, quantized: bool) -> None:
        if quantized and self.config.init.rewrites:
            allowed = "kaiming, gaussian or orthogonal beside weights in 8 or 4 bits, which stay what they are"
            do = "Choose adapter.init=kaiming, or model.quantization=none."
            raise ConfigError("adapter.init", self.config.init.value, allowed, do)
        if self.config.init.rewrites and not self.config.merge:
            allowed = (
                f"true with adapter.init={self.config.init.value}: the adapter alone does not fit the weights it had"
            )
            raise ConfigError("adapter.merge", False, allowed, "Set adapter.merge=true.")
        super().check(base, quantized)

    @override
    def peft_config(self, model: "PreTrainedModel", drawn: bool) -> "PeftConfig":
        from peft import LoraConfig

        c = self.config
        tied = bool(c.whole and model.config.tie_word_embeddings)
        embeddings = next(name for name, of in model.named_modules() if of is model.get_input_embeddings())
        last = embeddings.rpartition(".")[2]
        if tied and last not in c.whole and "lm_head" in c.whole:
            allowed = f"names with {last} among them: the head's weights are its own"
            raise ConfigError("adapter.whole", c.whole, allowed, f"Name {last} in place of lm_head.")
        init: Any = True if c.init is Init.kaiming else c.init.value
        return LoraConfig(
            r=c.rank,
            lora_alpha=c.alpha,  # type: ignore[arg-type]  # which it only divides
            lora_dropout=c.dropout,
            target_modules=ALL_LINEAR if c.targets == [ALL_LINEAR] else c.targets,
            modules_to_save=c.whole or None,
            ensure_weight_tying=tied and last in c.whole,
            init_lora_weights=init if drawn else False,
            task_type="CAUSAL_LM",
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
        )

    @override
    def named(self) -> dict[str, list[str]]:
        targets = [] if self.config.targets == [ALL_LINEAR] else self.config.targets
        return {"targets": targets, "whole": self.config.whole}


@ADAPTERS.register("dora")
class DoRA(LoRA):
    """The columns' lengths are trained by themselves: Liu et al. 2024, arXiv 2402.09353."""

    use_dora = True


@ADAPTERS.register("rslora")
class RankStabilized(LoRA):
    """Multiplied by alpha / sqrt(rank): Kalajdzievski 2023, arXiv 2312.03732."""

    use_rslora = True
