"""How far a model attends: what its configuration says of it, under each architecture's own names."""

from collections.abc import Mapping
from typing import Any


def positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model is made for, read from its config.json; None where nothing limits it."""
    text = {**config, **(config.get("text_config") or {})}
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
    named = next((text[name] for name in names if text.get(name)), None)
    if named is None:
        return None
    scaling = text.get("rope_scaling") or {}  # some of these count the stretched positions already, some do not
    stretched = (scaling.get("factor") or 1) * scaling.get("original_max_position_embeddings", named)
    return max(named, int(stretched))
