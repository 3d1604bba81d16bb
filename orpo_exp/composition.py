"""From the command line's overrides to what is run: composed by Hydra, typed, checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict

from orpo_exp.config import RunConfig, typed, typed_part
from orpo_exp.launchers import LAUNCHERS, Launcher
from orpo_exp.registry import outside_folders
from orpo_exp.runs.order import RunOrder
from orpo_exp.schema import ConfigError

ConfigStore.instance().store(group="schema", name="run", node=RunConfig)

# What Hydra itself would look at, and nothing here does: key -> the only value, and what to do instead.
ONLY: dict[str, tuple[Any, str]] = {
    "runtime.choices.hydra/sweeper": ("basic", "Other sweepers are not supported; list the values."),
    "runtime.choices.hydra/callbacks": (None, "Callbacks are not supported."),
    "mode": (None, "Use --multirun for a sweep."),
    "sweep.subdir": ("${hydra.job.num}", "Leave it out: a point's folder is named by what sets it apart."),
    "sweeper.max_batch_size": (None, "Say how many run at a time with the launcher's settings."),
    "job.chdir": (False, "Give whole paths, or change the folder before the command."),
    "job.env_set": ({}, "Set variables before the command, or in hydra.launcher.setup."),
}


def conf_folders(config_dir: str | None = None) -> list[Path]:
    """Where the configuration files are: inside the installed package, or beside it in a checkout; then the user's."""
    package = Path(__file__).resolve().parent
    own = next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())
    given = [Path(config_dir).resolve()] if config_dir else []
    return [own, *given, *(folder / "conf" for folder in outside_folders() if (folder / "conf").is_dir())]


def search_path(folders: Sequence[Path]) -> list[str]:
    """The override that makes Hydra look for options in these folders as well; none for no folder."""
    return [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"] if folders else []


def compose(overrides: list[str], config_dir: str | None) -> DictConfig:
    """The composed configuration with Hydra's own part; Hydra's and OmegaConf's exceptions pass through."""
    own, *others = conf_folders(config_dir)
    with hydra.initialize_config_dir(str(own), job_name="orpo_exp", version_base="1.3"):
        return hydra.compose("config", overrides=[*overrides, *search_path(others)], return_hydra_config=True)


def chosen_launcher(composed: DictConfig) -> Launcher:
    """The launcher that the configuration chooses; ConfigError for one of Hydra's, or settings it does not know."""
    node = composed.hydra.launcher
    if OmegaConf.get_type(node) not in LAUNCHERS:
        own = ", ".join(sorted(name.removesuffix(".yaml") for name in ConfigStore.instance().list("schema/launcher")))
        choice = composed.hydra.runtime.choices["hydra/launcher"]
        raise ConfigError("hydra/launcher", choice, f"{own}, or an option that builds on them", "Choose one of these.")
    return LAUNCHERS.build(typed_part(node, "hydra.launcher"))


def check(composed: DictConfig, overrides: list[str], config_dir: str | None = None) -> RunOrder:
    """What is to be run, typed and checked; ConfigError where it cannot be. overrides, config_dir: as it was composed
    with, for the command that goes on with it."""
    refuse_unheeded(composed.hydra)
    choices = {str(group): str(option) for group, option in composed.hydra.runtime.choices.items()}
    folder = Path(composed.hydra.run.dir)
    with open_dict(composed):
        composed.pop("hydra")
    groups = {group: option for group, option in choices.items() if not group.startswith("hydra")}
    config = typed(composed, groups)
    options = ("--config-dir", config_dir) if config_dir else ()
    return RunOrder(config, folder, groups.get("experiment", "adhoc"), overrides, options)


def refuse_unheeded(settings: DictConfig) -> None:
    """Refuse settings of Hydra's own that would be passed over without a word."""
    plain = OmegaConf.to_container(settings, resolve=False, enum_to_str=True)
    for key, (only, do) in ONLY.items():
        value: Any = plain
        for part in key.split("."):
            value = value[part]
        if value != only:
            name = key.removeprefix("runtime.choices.")
            raise ConfigError(name if "/" in name else f"hydra.{name}", value, f"{only}, as it is by itself", do)
