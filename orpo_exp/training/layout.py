"""The layout and the size of the micro-batches that a run uses: settled once, recorded in its checkpoints, and used
again where it goes on, for another one changes the last bits of its numbers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orpo_exp.layouts import LAYOUTS, Layout, LayoutConfig
from orpo_exp.layouts.padded import Padded
from orpo_exp.plugins import Plugin
from orpo_exp.plugins.precision import Precision
from orpo_exp.types import TokenizedPair

log = logging.getLogger(__name__)

# How far a token's log-probabilities may lie apart, on average, where they are computed in two ways: in 32 bits, and
# where matrix products have fewer.
EXACT, ROUNDED = 1e-4, 5e-2


@dataclass(frozen=True)
class Used:
    """What a run uses. layout: a layout's name. micro_batch_tokens: of a micro-batch whose size was left open."""

    layout: str
    micro_batch_tokens: int

    def record(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return {f"used.{name}": value for name, value in asdict(self).items()}

    @staticmethod
    def recorded(manifest: Mapping[str, Any] | None, asked: str) -> "Used | None":
        """What a checkpoint says; None where there is none, or it is of a version that had nothing to settle, or of a
        run for which another layout than `asked` was chosen."""
        split = manifest.get("split", {}) if manifest else {}
        if split.get("layout") != asked or "used.layout" not in split:
            return None
        return Used(split["used.layout"], split["used.micro_batch_tokens"])


def settle(
    config: LayoutConfig, sample: Sequence[TokenizedPair], one_text_a_row: str | None, used: Used | None
) -> Layout:
    """The layout for such data, see `Layout.settled`; or the one that this run used before."""
    if used:
        of = LAYOUTS.named(used.layout)
        layout, why = of(config if isinstance(config, of.Config) else of.Config()), "as before"
    else:
        layout, why = LAYOUTS.build(config).settled(sample, one_text_a_row)
    log.info("layout: %s, %s", LAYOUTS.name(layout), why)
    return layout


def checked(layout: Layout, plugin: Plugin, sample: Sequence[TokenizedPair]) -> Layout:
    """The layout, where it gives the policy's log-probabilities of the longest of some pairs; else, with a warning, the
    plain one. A model may number positions, or look back, in a way of its own."""
    plain = Padded(Padded.Config())
    if not layout.several_texts:
        return layout
    pair = max(sample, key=lambda pair: pair.length)
    scored = [plugin.score([of.collate([pair], frozenset())]) for of in (layout, plain)]
    ours, exact = ([of.chosen.values, of.rejected.values] for of in scored)
    apart = max(float((a - b).abs().mean()) for a, b in zip(ours, exact, strict=True))
    most = EXACT if plugin.config.precision is Precision.fp32 else ROUNDED
    if plugin.ranks.everywhere(apart <= most):
        return layout
    log.warning(
        "layout: padded in place of %s, for this model's log-probabilities come out otherwise in a row that holds more "
        "than one text: by %.2g a token, where %.0g is allowed",
        *(LAYOUTS.name(layout), apart, most),
    )
    return plain
