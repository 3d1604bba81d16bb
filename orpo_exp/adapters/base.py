"""What an adapter is, and the choice of none."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from orpo_exp.registry import Registry
from orpo_exp.schema import ConfigError, Settings
from orpo_exp.types import Builder


@dataclass
class AdapterConfig(Settings):
    """Base of every adapter's configuration."""


class Adapter(ABC):
    """Puts what is trained into a model as it is built; what it leaves alone requires no gradient any more.

    partial: whether a part of the weights alone is trained. lr_factor: the learning rate that suits it, in those that
    suit the whole model. dropout: the share of its own activations that it drops in training.
    """

    Config: ClassVar[type[AdapterConfig]]
    partial: ClassVar[bool] = True
    lr_factor: ClassVar[float] = 1.0

    def __init__(self, config: AdapterConfig) -> None:
        self.config = config

    @property
    def dropout(self) -> float:
        """See above."""
        return 0.0

    def check(self, base: str | None, quantized: bool) -> None:
        """Refuse with ConfigError what can be refused before anything is loaded.

        base: where others find the weights that it goes with, a folder or a hub id; None: nowhere. quantized: whether
        they lie in so few bits that they cannot be trained.
        """
        return None

    def digest(self) -> str:
        """A hexadecimal SHA-256 of the files that it starts from; empty where there are none."""
        return ""

    def describe(self, folder: Path) -> None:
        """Write what those need to know of it who read a checkpoint, once something was built with it."""
        return None

    @abstractmethod
    def on(self, build: Builder, base: str | None, seed: int) -> Builder:
        """The same models with it. seed: draws its weights. base: as in `check`.

        What is built raises ConfigError where the model has no place for it.
        """


ADAPTERS: Registry[Adapter] = Registry("adapter")


@ADAPTERS.register("none")
class NoAdapter(Adapter):
    """Every weight is trained."""

    partial = False

    @dataclass
    class Config(AdapterConfig):
        """There is nothing to set."""

    @override
    def check(self, base: str | None, quantized: bool) -> None:
        if quantized:
            allowed = "one that leaves the weights as they are: of those in 8 or 4 bits none can be trained"
            raise ConfigError("adapter", "none", allowed, "Choose adapter=lora, say, or model.quantization=none.")

    @override
    def on(self, build: Builder, base: str | None, seed: int) -> Builder:
        return build
