"""A registry joins a component's name, its class and its configuration, and gives Hydra the schema."""

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from hydra.core.config_store import ConfigStore

from orpo_exp.schema import ConfigError

C = TypeVar("C")


class Registry(Generic[C]):
    """The components of one configuration group (`loss`, `plugin`, ...).

    A component is a class with a nested dataclass `Config` where it has settings of its own, and is made from an
    instance of it:

        @LOSSES.register("orpo")
        class ORPO(Loss):
            @dataclass
            class Config(LossConfig):
                lam: float = setting(0.1, ge=0)

    The schema lies in Hydra's ConfigStore under `schema/<group>/<name>`, outside the group, so that it is no choice of
    its own; `conf/<group>/<name>.yaml` builds on it. Which class to make is read from the configuration's type: a name
    inside the configuration could be changed to another component's.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self._class_of: dict[type, type[C]] = {}
        self._named: dict[str, type[C]] = {}

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Class decorator: make the class known as `name`.

        A class without a nested `Config` gets one, with the fields of what it inherits. Raises ValueError where the
        name is taken, or where there is no `Config` to inherit.
        """

        def keep(component: type[C]) -> type[C]:
            store = ConfigStore.instance()
            if f"{name}.yaml" in store.repo.get("schema", {}).get(self.group, {}):
                raise ValueError(f"{self.group} {name!r} is registered twice; give one of them another name")
            config = own_config(component)
            store.store(group=f"schema/{self.group}", name=name, node=config)
            self._class_of[config] = self._named[name] = component
            return component

        return keep

    def __iter__(self) -> Iterator[type[C]]:
        """The components' classes, in the order in which they were registered."""
        return iter(self._named.values())

    def __contains__(self, config_class: object) -> bool:
        """Whether this is the configuration class of one of the components."""
        return config_class in self._class_of

    def of(self, config: object) -> type[C]:
        """The component's class for a typed configuration."""
        return self._class_of[type(config)]

    def named(self, name: str) -> type[C]:
        """The component's class by the name that it is chosen by."""
        return self._named[name]

    def name(self, component: C) -> str:
        """The name by which a component is chosen."""
        return next(name for name, of in self._named.items() if of is type(component))

    def build(self, config: object, *args: Any) -> C:
        """The component, made from its configuration and whatever else its group hands over."""
        make: Callable[..., C] = self.of(config)
        return make(config, *args)


def own_config(component: type) -> type:
    """The component's nested `Config`, or one made from what it inherits, which would stand for another component.

    The one that is made lies where a nested one would, so that it can be pickled.
    """
    config = getattr(component, "Config", None)
    if config is None:
        raise ValueError(f"{component.__name__} has no Config; give it a nested dataclass")
    place = {"__module__": component.__module__, "__qualname__": f"{component.__qualname__}.Config"}
    if place != {name: getattr(config, name) for name in place}:
        config = dataclass(type("Config", (config,), place))
        component.Config = config  # type: ignore[attr-defined]
    config.__name__ = f"{component.__name__}Config"  # so that errors name the component
    return config


def outside_folders() -> list[Path]:
    """The folders that ORPO_EXP_PATH names (separated as in PATH): components of the user's own, and their conf/."""
    names = os.environ.get("ORPO_EXP_PATH", "").split(os.pathsep)
    folders = [Path(name).expanduser().resolve() for name in names if name]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError("ORPO_EXP_PATH", str(folder), "folders that exist", "Correct the environment variable.")
    return folders


def import_outside() -> None:
    """Import the modules in the folders of ORPO_EXP_PATH. The ranks find them too: they get this process's sys.path."""
    for folder in outside_folders():
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        for file in sorted(folder.glob("*.py")):
            module = importlib.import_module(file.stem)
            if Path(str(module.__file__)).resolve() != file:
                raise ConfigError("ORPO_EXP_PATH", str(file), "a name that no other module has", "Rename the file.")


def import_modules(package: str, path: Iterable[str], command: str = "") -> None:
    """Import every module of a room, so that a new component needs no list to be entered in. command: one that is none
    of its components, but run by `python -m`."""
    for module in pkgutil.iter_modules(path):
        if module.name != command:
            importlib.import_module(f"{package}.{module.name}")
