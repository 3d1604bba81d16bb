"""What a layout is: the way several pairs become the inputs of one forward pass."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from orpo_exp.registry import Registry
from orpo_exp.schema import Settings
from orpo_exp.types import Batch, Need, TokenizedPair


@dataclass
class LayoutConfig(Settings):
    """Base of every layout's configuration."""


class Layout(ABC):
    """Turns pairs into model inputs and says which positions are scored. Layouts change the speed, never a number."""

    Config: ClassVar[type[LayoutConfig]] = LayoutConfig

    def __init__(self, config: LayoutConfig) -> None:
        self.config = config

    def cost(self, pair: TokenizedPair) -> int:
        """What a pair costs to compute, in tokens: pairs of like cost share a micro-batch."""
        return pair.length

    @abstractmethod
    def collate(self, pairs: Sequence[TokenizedPair], needs: frozenset[Need]) -> Batch:
        """One micro-batch. Without any pair it is a batch that the model can run and in which nothing is scored: ranks
        must run equally many micro-batches, and a short last batch may not have a pair for each."""


LAYOUTS: Registry[Layout] = Registry("layout")
