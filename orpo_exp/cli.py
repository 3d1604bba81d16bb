"""The command line: compose, check, start the run or the sweep."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from orpo_exp.composition import check, chosen_launcher, compose, conf_folders, search_path
from orpo_exp.data import DATA, SourceData
from orpo_exp.help_page import help_page
from orpo_exp.launchers import Launcher
from orpo_exp.models import MODELS
from orpo_exp.plugins import Place, torchrun_place
from orpo_exp.registry import import_outside
from orpo_exp.runs.order import RunOrder
from orpo_exp.runs.resuming import has_work
from orpo_exp.runs.states import how_many
from orpo_exp.schema import ConfigError, Refused
from orpo_exp.sweeps.points import Combination, Plan, combinations, plan, sweep_name
from orpo_exp.sweeps.progress import GOING_ON, states
from orpo_exp.sweeps.racing import check_race, raced
from orpo_exp.sweeps.search import Search, check_search, decided_by, searched
from orpo_exp.sweeps.space import Space, has_interval, space_of
from orpo_exp.sweeps.study import Study
from orpo_exp.sweeps.summary import write_summary
from orpo_exp.sweeps.sweep_file import add_points
from orpo_exp.user_errors import ComposeError, error_page, explain


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0, 1 failed, 2 refused, 128 + n stopped by signal n (130 for Ctrl-C); a sweep's is that of its worst point.
    """
    if arguments is not None:
        sys.argv[1:] = arguments  # Hydra reads them there
    args = get_args_parser().parse_intermixed_args()
    place = torchrun_place(os.environ)
    try:
        import_outside()
        if args.help:
            print(help_page(conf_folders()))
            return 0
        if args.hydra_help or args.info or args.shell_completion:
            return with_hydra(args.overrides)
        if args.cfg:
            compose(first_point(args.overrides).overrides if args.multirun else args.overrides, args.config_dir)
            return with_hydra(args.overrides)
        if args.multirun:
            if place is not None:
                do = "Start it without torchrun: the launcher starts the ranks of each point (processes=...)."
                raise ConfigError("--multirun", "torchrun", "a sweep that is started once", do)
            planned, folder, launcher = planned_sweep(args.overrides, args.config_dir)
            if any(order.config.plan_only for order in planned.to_run):
                from orpo_exp.planning import plan_sweep

                return plan_sweep(planned.to_run, launcher)
            return carry_out(planned, folder, launcher, ["python", "-m", "orpo_exp", *sys.argv[1:]])
        composed = compose(args.overrides, args.config_dir)
        launcher = chosen_launcher(composed)
        order = check(composed, args.overrides, args.config_dir)
        if place is None:
            launcher.check([order])
            if not has_work(order):  # of torchrun's ranks the main one will ask
                print(f"This run has completed already: {order.folder}")
                return 0
        fetch = launcher.elsewhere() is not None
        order = replace(order, data=preflight(order, fetch))
        if order.config.plan_only:
            from orpo_exp.planning import plan_run

            return plan_run(order, place, launcher)
        return start(order, place, launcher)
    except (ConfigError, *ComposeError) as error:
        if place is None or place.rank == 0:
            print(error_page(explain(error, args.overrides)), file=sys.stderr)
        return 2


def preflight(order: RunOrder, fetch: bool = False) -> SourceData:
    """Refuse what only a look at the disk can tell, before anything is made there; the data that were looked at, of a
    hub fetched. fetch: whether the model is to be as well, for ranks that are elsewhere."""
    try:
        source = MODELS.build(order.config.model)
        source.check()
        if fetch:
            source.fetch()
        return DATA.build(order.config.data).load(order.config.seed)
    except ConfigError:
        raise
    except Refused as error:
        raise ConfigError("data", order.config.choices.get("data"), "data that can be read", str(error)) from error


def start(order: RunOrder, place: Place | None, launcher: Launcher) -> int:
    """Run in this process where torchrun has made it a rank already, else as the launcher does."""
    from orpo_exp.experiment import run_rank

    if place is not None:
        if not launcher.foreground:
            do = "Start it without torchrun: a job has a task for each rank."
            raise ConfigError("hydra/launcher", "another than local, under torchrun", "local", do)
        return run_rank(place, order)
    return launcher.run(order, run_rank)


def planned_sweep(overrides: list[str], config_dir: str | None) -> tuple[Plan, Path, Launcher]:
    """Every point composed and checked; which of them are missing or have not completed, the sweep's folder, and who
    has them run."""
    first = first_point(overrides)
    with named(first):
        composed = compose(first.overrides, config_dir)
        launcher = chosen_launcher(composed)
    preset: DictConfig = composed.hydra.sweeper.params or DictConfig({})
    given = {override.lstrip("+").partition("=")[0] for override in first.overrides}
    own = [f"{key!s}={values}" for key, values in preset.items() if str(key) not in given]
    if (trials := composed.sweep.trials) is not None:
        space = space_of([*overrides, *own])
        planned, folder = planned_search(overrides, space, trials, preset, composed, launcher, config_dir)
        return planned, folder, launcher
    if written := has_interval([*overrides, *own]):
        key, _, value = written.partition("=")
        allowed = "a list of values; or, with sweep.trials, an interval to be searched"
        raise ConfigError(key, value, allowed, "Say how many settings to try: sweep.trials=12.")
    orders = [(point, checked_point(point, config_dir, preset)) for point in combinations([*overrides, *own])]
    launcher.check([order for _, order in orders])
    if composed.sweep.racing:
        check_race([point for point, _ in orders])

    name = composed.sweep.name or sweep_name([order.config for _, order in orders], list(orders[0][0].swept))
    composed.sweep.name = name
    folder = Path(composed.hydra.sweep.dir).absolute()
    planned = plan(folder, orders[0][1].experiment, overrides, orders)
    if composed.sweep.racing:
        planned = raced(folder, planned)
    for order in planned.to_run:
        has_work(order)  # refuses what lies in its folder
    look_at(planned.to_run, launcher)
    return planned, folder, launcher


def first_point(overrides: list[str]) -> Combination:
    """A point of a sweep, to find its preset and its launcher by."""
    return space_of(overrides).examples[0] if has_interval(overrides) else combinations(overrides)[0]


def planned_search(
    overrides: list[str],
    space: Space,
    trials: int,
    preset: DictConfig,
    composed: DictConfig,
    launcher: Launcher,
    config_dir: str | None,
) -> tuple[Plan, Path]:
    """A search, its intervals' ends and all its lists' values composed and checked, and its folder."""
    check_search(space, trials)
    compose_point = partial(checked_point, config_dir=config_dir, preset=preset)
    orders = [compose_point(point) for point in space.examples]
    if any(order.config.plan_only for order in orders):
        do = "Leave out sweep.trials, and give each key one value."
        raise ConfigError("plan_only", True, "false with sweep.trials: what it will try is not known yet", do)
    launcher.check(orders)
    keys = [axis.name for axis in space.axes]
    composed.sweep.name = composed.sweep.name or sweep_name([order.config for order in orders], [*keys, "trials"])
    folder = Path(composed.hydra.sweep.dir).absolute()
    study = Study(folder, space.axes, *decided_by(orders))
    look_at(orders, launcher)
    return searched(Search(folder, space, study, compose_point), trials, overrides, orders), folder


def look_at(orders: Sequence[RunOrder], launcher: Launcher) -> None:
    """Refuse what only a look at the disk can tell, once for each model, data and seed."""
    inputs = {repr((order.config.model, order.config.data, order.config.seed)): order for order in orders}
    for order in inputs.values():
        preflight(order, launcher.elsewhere() is not None)


def checked_point(point: Combination, config_dir: str | None, preset: DictConfig) -> RunOrder:
    """One point, composed and checked. What its preset says is to be varied must be what the first point's says."""
    with named(point):
        composed = compose(point.overrides, config_dir)
        if (own := composed.hydra.sweeper.params or DictConfig({})) != preset:
            allowed = f"in all points the same, here {dict(preset)}"
            raise ConfigError("hydra.sweeper.params", dict(own), allowed, "Sweep over these presets one after another.")
        if any(override.startswith("hydra.run.dir=") for override in point.overrides):
            allowed = "nothing: the points have folders of their own in hydra.sweep.dir"
            raise ConfigError("hydra.run.dir", composed.hydra.run.dir, allowed, "Give hydra.sweep.dir or sweep.name.")
        return check(composed, point.overrides, config_dir)


@contextmanager
def named(point: Combination) -> Iterator[None]:
    """Say of an error in which point it is."""
    try:
        yield
    except (ConfigError, *ComposeError) as error:
        why = explain(error, point.overrides)
        raise ConfigError(why.key, f"{why.given} in the point {point.name}", why.allowed, why.do) from error


def carry_out(planned: Plan, folder: Path, launcher: Launcher, command: Sequence[str]) -> int:
    """Write down what the sweep is, say what is to be done, do it. command: what goes on with it, for people."""
    from orpo_exp.experiment import run_rank

    folder.mkdir(parents=True, exist_ok=True)
    add_points(folder, planned.sweep)
    counts = how_many(planned.states.elements())
    print(f"{folder}\n{planned.states.total()} points: {counts}; {len(planned.to_run)} to run", flush=True)
    if not planned.to_run:
        if not any(planned.states[state] for state in GOING_ON):
            tell_summary(folder)
        return 0
    code = launcher.sweep(folder, planned.stages, run_rank)
    if (found := states(folder)) is not None and not any(state in GOING_ON for state in found.values()):
        tell_summary(folder)
    if code:
        print(f"This goes on with what is left:\n  {shlex.join(command)}")
    return code


def tell_summary(folder: Path) -> None:
    """Rebuild the sweep's summary and print its answer."""
    try:
        print(f"\n{write_summary(folder).text}\n{folder / 'summary.md'}")
    except (ValueError, OSError) as error:
        print(f"no summary: {error}", file=sys.stderr)


def with_hydra(overrides: list[str]) -> int:
    """Hand the command line to Hydra itself, for its information pages. It wants all flags before all overrides."""
    own, *others = conf_folders()
    flags = [argument for argument in sys.argv[1:] if argument not in overrides]
    sys.argv[1:] = [*flags, *overrides, *search_path(others)]
    show: Any = hydra.main(version_base="1.3", config_path=str(own), config_name="config")(lambda cfg: None)
    show()
    return 0
