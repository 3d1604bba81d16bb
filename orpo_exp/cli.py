"""The command line: compose, check, start the ranks."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from orpo_exp.config import RunConfig, typed
from orpo_exp.data import DATA
from orpo_exp.models import MODELS
from orpo_exp.plugins import Place, start_ranks, torchrun_place
from orpo_exp.registry import import_outside, outside_folders
from orpo_exp.run_folder import RunOrder
from orpo_exp.schema import ConfigError
from orpo_exp.user_errors import ComposeError, error_page, explain

ConfigStore.instance().store(group="schema", name="run", node=RunConfig)


def conf_folder() -> Path:
    """The configuration files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 failed, 2 refused, 130 interrupted."""
    if arguments is not None:
        sys.argv[1:] = arguments  # Hydra reads them there
    args = get_args_parser().parse_args()
    quiet = (place := torchrun_place(os.environ)) is not None and place.rank > 0
    try:
        import_outside()
        if args.help:
            from orpo_exp.help_page import help_page

            print(help_page([conf_folder(), *outside_conf()]))
            return 0
        if args.hydra_help or args.info or args.shell_completion:
            return with_hydra()
        points = sweep_points(args.overrides, args.config_dir) if args.multirun else [args.overrides]
        orders = [compose(point, args.config_dir) for point in points]
        if args.cfg:
            return with_hydra()
        checked = [check(cfg, point) for cfg, point in zip(orders, points, strict=True)]
        for order in checked:
            preflight(order)
    except (ConfigError, *ComposeError) as error:
        if not quiet:
            print(error_page(explain(error, args.overrides)), file=sys.stderr)
        return 2
    return with_hydra() if args.multirun else start(checked[0], place)


def compose(overrides: list[str], config_dir: str | None) -> DictConfig:
    """The composed configuration with Hydra's own part; Hydra's and OmegaConf's exceptions pass through."""
    folders = [*([Path(config_dir).resolve()] if config_dir else []), *outside_conf()]
    with hydra.initialize_config_dir(str(conf_folder()), job_name="orpo_exp", version_base="1.3"):
        return hydra.compose("config", overrides=[*overrides, *search_path(folders)], return_hydra_config=True)


def outside_conf() -> list[Path]:
    """The configuration folders of the user's own components."""
    return [folder / "conf" for folder in outside_folders() if (folder / "conf").is_dir()]


def search_path(folders: Sequence[Path]) -> list[str]:
    """The override that makes Hydra look for options in these folders as well; none for no folder."""
    return [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"] if folders else []


def check(composed: DictConfig, overrides: list[str]) -> RunOrder:
    """What is to be run, typed and checked; ConfigError where it cannot be."""
    choices = {str(group): str(option) for group, option in composed.hydra.runtime.choices.items()}
    folder = Path(composed.hydra.run.dir)
    with open_dict(composed):
        composed.pop("hydra")
    groups = {group: option for group, option in choices.items() if not group.startswith("hydra")}
    config = typed(composed, groups)
    return RunOrder(config, folder, groups.get("experiment", "adhoc"), overrides)


def preflight(order: RunOrder) -> None:
    """Refuse what only a look at the disk can tell, before anything is made there."""
    if (order.folder / "result.json").exists():
        raise ConfigError(
            "hydra.run.dir", str(order.folder), "a folder without a run in it", "Choose another, or move that run away."
        )
    try:
        MODELS.build(order.config.model).check()
        DATA.build(order.config.data).load(order.config.seed)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError("data", order.config.choices.get("data"), "data that can be read", str(error)) from error


def start(order: RunOrder, place: Place | None) -> int:
    """Run in this process where it is a rank already or the only one, else in as many as asked for."""
    from orpo_exp.experiment import run_rank

    count = rank_count(order)
    if place is not None:
        return run_rank(place, order)
    return run_rank(Place(), order) if count == 1 else start_ranks(count, run_rank, order)


def rank_count(order: RunOrder) -> int:
    """Ranks to start on this machine: as many as asked for, else one for each visible GPU, else one."""
    return order.config.processes or max(1, torch.cuda.device_count())


def sweep_points(overrides: list[str], config_dir: str | None) -> list[list[str]]:
    """The overrides of each point of a sweep: what the command varies, and what a preset says is to be varied."""
    parser = OverridesParser.create()
    fixed = [
        text for text, o in zip(overrides, parser.parse_overrides(overrides), strict=True) if not o.is_sweep_override()
    ]
    varied = compose(fixed, config_dir).hydra.sweeper.params or {}
    given = {o.key_or_group for o in parser.parse_overrides(overrides)}
    whole = [*overrides, *(f"{key}={values}" for key, values in varied.items() if key not in given)]
    batches: list[list[list[str]]] = BasicSweeper.split_arguments(parser.parse_overrides(whole), max_batch_size=None)
    return [point for batch in batches for point in batch]


def with_hydra() -> int:
    """Hand the command line to Hydra itself: its information pages, and the points of a sweep one after another."""
    codes: list[int] = []
    sys.argv += search_path(outside_conf())

    def point(composed: DictConfig) -> None:
        from orpo_exp.experiment import run_rank

        job = HydraConfig.get()
        composed = composed.copy()
        with open_dict(composed):
            composed.hydra = {"runtime": {"choices": job.runtime.choices}, "run": {"dir": job.runtime.output_dir}}
        order = check(composed, list(job.overrides.task))
        # a process of its own for each point: nothing is left over from the one before
        codes.append(start_ranks(rank_count(order), run_rank, order))

    run: Any = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(point)
    run()
    return max(codes, default=0)
