"""What sets a run apart, read from its folder: dotted keys and their values as text, however they were typed."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from orpo_exp.schema import flat

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
NO_CONDITION = ("tracker", "sweep", "resume")  # parts of a config.yaml that no number depends on


def read_settings(folder: Path, result: Mapping[str, Any]) -> dict[str, str]:
    """What could set a run apart as dotted key to text, a group's choice under the group's name; empty without any."""
    content = dict(result["settings"] if "settings" in result else read_config(folder / CONFIG))
    choices = content.pop("choices", None) or {}
    chosen = {str(group): canonical(option) for group, option in choices.items()}
    settings = chosen | {key: canonical(value) for key, value in flat(content).items()}
    return {key: value for key, value in settings.items() if key.split(".")[0] not in NO_CONDITION}


def read_config(path: Path) -> dict[str, Any]:
    """What a config.yaml holds; nothing without one."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:  # being written just now, or cut short by a kill
        log.warning("%s is passed over: %s", path, error)
        return {}


def canonical(value: Any) -> str:
    """A value as text, the same for all ways to type it: 1.0 and 1e0 are 1, 'a' is a, None is null."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    text = str(value).strip()
    if text[:1] in ("[", "{"):
        return json.dumps(yaml.safe_load(text), ensure_ascii=False)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    parsed = as_number(text)
    if parsed is None:
        return text.lower() if text.lower() in ("true", "false", "null") else text
    return f"{parsed:.12g}" if abs(parsed) < 2**53 else text


def as_typed(settings: Mapping[str, str]) -> str:
    """Settings as one would type them."""
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def as_number(text: str) -> float | None:
    """The number a value is, None for a word."""
    try:
        parsed = float(text)
    except ValueError:
        return None
    return parsed if math.isfinite(parsed) and "_" not in text else None
