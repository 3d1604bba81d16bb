"""Errors in what a user gave, told in the project's own words: the key, what was given, what is allowed, what to do."""

import dataclasses
import difflib
import re
import typing
from enum import Enum
from types import NoneType, UnionType
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from orpo_exp.schema import ConfigError, Refused

ComposeError = (HydraException, OmegaConfBaseException)

PAGE = """\
orpo_exp: this cannot be run, and nothing was started.

  key      {error.key}
  given    {error.given}
  allowed  {error.allowed}
  do       {error.do}

`python -m orpo_exp --help` lists all options; `--cfg job` added to a command shows its configuration."""

TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def explain(error: Exception, overrides: list[str]) -> ConfigError:
    """Any error of composing or checking as a ConfigError. `overrides`: the command's, to find what was given."""
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        options = sorted(o for o in error.options or [] if not o.startswith("schema"))
        allowed = ", ".join(options) or "(nothing)"
        return ConfigError(group or "configuration", option, allowed, _nearest(option, options))
    if isinstance(error, OverrideParseException):
        do = f"Quote special characters. {_first(error)}"
        return ConfigError(error.override, error.override, "key=value, +key=value or ~key", do)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        found = _from_omegaconf(cause, overrides)
        if in_file := re.match(r"In '(.+?)'", str(error)):
            return ConfigError(found.key, f"{found.given} in {in_file[1]}.yaml", found.allowed, found.do)
        return found
    return ConfigError("configuration", " ".join(overrides), "a configuration that Hydra can compose", _first(error))


def error_page(error: ConfigError) -> str:
    """What is printed: nothing was started, and why."""
    return PAGE.format(error=error)


def refusal(refused: Refused) -> str:
    """What is printed of anything that was refused."""
    return error_page(refused) if isinstance(refused, ConfigError) else f"orpo_exp: {refused}"


def _from_omegaconf(cause: OmegaConfBaseException, overrides: list[str]) -> ConfigError:
    key, schema = str(cause.full_key), cause.object_type
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        parent = key.rpartition(".")[0]
        known = sorted(str(k) for k in (cause.parent_node or {}) if k not in ("hydra", "choices"))
        do = _nearest(str(cause.key), known)
        return ConfigError(key, _given(key, overrides), f"the keys of {parent or 'the run'}: {', '.join(known)}", do)
    if isinstance(cause, ValidationError) and dataclasses.is_dataclass(schema):
        allowed = _describe(typing.get_type_hints(schema).get(str(cause.key), Any))
        return ConfigError(key, cause.value, allowed, f"Change {key}.")
    return ConfigError(key, _given(key, overrides), "see `--cfg job`", str(cause.msg).splitlines()[0])


def _describe(kind: Any) -> str:
    """A field's type in words."""
    if typing.get_origin(kind) in (UnionType, typing.Union):
        return " or ".join("null" if part is NoneType else _describe(part) for part in typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(member.name for member in kind)
    if dataclasses.is_dataclass(kind):
        return f"one of the group's options, or its keys: {', '.join(f.name for f in dataclasses.fields(kind))}"
    return TYPES.get(kind, str(kind))


def _given(key: str, overrides: list[str]) -> str:
    """The value that the command gives a key; the key itself where it comes from a file."""
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        if name == key:
            return value
    return key


def _nearest(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else "Choose one of these."


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
