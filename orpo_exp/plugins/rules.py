"""What plugins can be combined with: declared by each, checked before anything is loaded, listed in the README."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What is known of a run before anything is loaded.

    plugin, reference, model_settings: what was chosen. optimizer, adapter: their classes. read_model: the contents of
    the model's config.json, or what stands for it; perhaps from a hub, and so asked for only where a rule needs it.
    world_size: ranks; None while it is not known, as when a sweep is submitted.
    """

    plugin: Any
    reference: Any
    model_settings: Any
    optimizer: Any
    adapter: Any
    read_model: Callable[[], Mapping[str, Any]]
    world_size: int | None

    @cached_property
    def model(self) -> Mapping[str, Any]:
        """The contents of the model's config.json."""
        return self.read_model()


@dataclass(frozen=True)
class Rule:
    """A combination that a plugin wants. key: of the setting that is to blame where it is not kept. allowed, do: for
    people, as in ConfigError. why: the reason in this case, where it is not the same in all."""

    key: str
    allowed: str
    do: str
    kept: Callable[[Facts], bool]
    why: Callable[[Facts], str] | None = None

    def advice(self, facts: Facts) -> str:
        """What to do, and why in this case."""
        return self.do if self.why is None else f"{self.do} Here {self.why(facts)}."


WHOLE_TRAINED = Rule(
    "adapter",
    "none with this plugin, which trains whole models alone",
    "Choose plugin=ddp, or zero2, say.",
    lambda f: not f.adapter.partial,
)


def divides(divisor: int, number: int | None) -> bool:
    """Whether it does; so does anything what is not known."""
    return number is None or number % divisor == 0
