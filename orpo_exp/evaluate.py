"""A finished run on other pairs, or once more on its own.

    python -m orpo_exp.evaluate RUN                               # on the pairs that it held out
    python -m orpo_exp.evaluate RUN --split test
    python -m orpo_exp.evaluate RUN data.path=other.jsonl         # on all pairs of a file
    python -m orpo_exp.evaluate RUN data=hub data.path=someone/pairs data.split=test plugin=zero2 processes=2

The run's own loss, lengths and template are used, its weights from RUN/model, and the model that it began with where
its loss compares with that. What it comes to lies in RUN/evaluations/NAME/: evaluation.json, pairs.parquet and
held_out.parquet.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from orpo_exp.adapters import ADAPTERS
from orpo_exp.composition import check, compose
from orpo_exp.config import RunConfig, check_plugin
from orpo_exp.data import DATA, SourceData
from orpo_exp.experiment import COMPLETED, REFUSED, beginning, read
from orpo_exp.files import write_atomically
from orpo_exp.launchers import LAUNCHERS
from orpo_exp.losses import LOSSES
from orpo_exp.models import MODELS
from orpo_exp.plugins import PLUGINS, Place, torchrun_place
from orpo_exp.plugins.precision import arithmetic_as_before
from orpo_exp.plugins.ranks import left_afterwards
from orpo_exp.preparing import ready
from orpo_exp.registry import import_outside
from orpo_exp.runs.order import NEVER, RunOrder
from orpo_exp.runs.states import read_result
from orpo_exp.schema import ConfigError, Refused, flat
from orpo_exp.tracking.console import evaluation_table
from orpo_exp.training.evaluation import measured
from orpo_exp.training.pair_results import PairFiles
from orpo_exp.training.reference import HELD_OUT, REFERENCES
from orpo_exp.user_errors import ComposeError, explain, refusal

FREE = ("data", "plugin", "layout", "choices.data", "choices.plugin", "choices.layout")  # what may be said anew
AS_TRAINED = ("max_length", "min_prompt_length", "whole_text", "chat_template")  # how texts become tokens
WHOLE = ("eval_path", "eval_split", "test_path", "test_split", "test_size", "rows")  # of the run's data, not of others
OF_ORIGIN = ("path", "revision", "quantization", "resize_embeddings")  # of a model, not of what was trained from it
ADAPTER = "adapter_config.json"


class Split(StrEnum):
    """Which pairs: those that the run held out, those of its test, or all of the data."""

    held_out = "held_out"
    test = "test"
    all = "all"


@dataclass(frozen=True)
class Evaluation:
    """What the ranks are told. run: the finished run's folder. original: its configuration. split: of which pairs.
    weight: what the lambda schedule gave its last step, None where its loss has none. command: the given words."""

    run: Path
    original: RunConfig
    split: Split
    weight: float | None
    step: int
    command: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, print the metrics and where they lie; 0, 1 failed, 2 refused."""
    description = "Evaluate a finished run."
    parser = argparse.ArgumentParser("python -m orpo_exp.evaluate", description=description)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that has completed")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="other data; how the work is split")
    parser.add_argument("--split", choices=list(Split), type=Split, help="which pairs; held_out, or all of other data")
    parser.add_argument("--name", help="of the folder in RUN/evaluations; a hash of what was given, if not")
    parser.add_argument("--config-dir", help="a folder with further options, as the run was given one")
    given = parser.parse_intermixed_args(arguments)
    place = torchrun_place(os.environ)
    try:
        import_outside()
        order, evaluation = planned(given.run, given.overrides, given.split, given.name, given.config_dir)
        entry = partial(evaluate, evaluation)
        if place is not None:
            return entry(place, order)
        return LAUNCHERS.build(LAUNCHERS.named("local").Config()).run(order, entry)
    except (Refused, *ComposeError) as error:
        if place is None or place.rank == 0:
            refused = error if isinstance(error, Refused) else explain(error, given.overrides)
            print(refusal(refused), file=sys.stderr)
        return REFUSED


def planned(
    run: Path, overrides: list[str], split: Split | None, name: str | None, config_dir: str | None
) -> tuple[RunOrder, Evaluation]:
    """What is to be evaluated, composed and checked. Raises Refused."""
    result = read_result(run)
    if result is None or result["status"] != "completed" or not (run / "model").is_dir():
        found = (
            "there is no run" if result is None else f"it is {result['status']}, and has a model/ only once completed"
        )
        do = "Give the folder of a completed run, with its model/."
        raise Refused(f"{run} cannot be evaluated: {found}. {do}")
    command = [of for of in result["overrides"] if not of.startswith(("hydra.run.dir=", "resume="))]
    own = check(compose(command, config_dir), command, config_dir).config
    if own.config_hash != result["config_hash"]:
        raise Refused(f"{run} was run with another configuration than its command gives now: {' '.join(command)}")
    keys = {of.lstrip("+~").partition("=")[0] for of in overrides}
    others = any(key.partition(".")[0] == "data" for key in keys)
    if "data" in keys:  # of which the settings of the run's own are none
        command = [of for of in command if not of.lstrip("+~").startswith("data")]
    given = check(compose([*command, *overrides], config_dir), [*command, *overrides], config_dir)
    refuse_other_training(own, given.config)
    if others:
        data, was = given.config.data, own.data
        anew: dict[str, Any] = {name: None for name in WHOLE if hasattr(data, name)}
        anew |= {name: getattr(was, name) for name in AS_TRAINED}
        anew = {name: value for name, value in anew.items() if f"data.{name}" not in keys}
        given = replace(given, config=replace(given.config, data=replace(data, **anew)))
    split = split or (Split.all if others else Split.held_out)
    name = name or (hashlib.sha256(json.dumps([*overrides, split]).encode()).hexdigest()[:8] if overrides else split)
    if Path(name).name != name:
        raise ConfigError("--name", name, "the name of one folder", "Leave out what is not a name.")
    config = replace(given.config, train=replace(given.config.train, max_steps=1), resume=NEVER)
    config = with_weights_of(run, config)
    order = replace(given, config=config, folder=run / "evaluations" / name)
    weight = result["eval"].get("lam")
    return order, Evaluation(run, own, split, weight, result["steps"], tuple(overrides))


def refuse_other_training(own: RunConfig, given: RunConfig) -> None:
    """What the run was trained with is what it is evaluated with."""
    before, now = (flat(config.identity()) for config in (own, given))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not any(key == of or key.startswith(f"{of}.") for of in FREE):
            allowed = f"what the run was trained with: {before.get(key)}"
            raise ConfigError(key, now.get(key), allowed, "Leave it out: data, plugin and layout may be others.")


def with_weights_of(run: Path, config: RunConfig) -> RunConfig:
    """The configuration whose model is the trained one, and whose reference is held beside it."""
    if REFERENCES.of(config.reference).moves:
        allowed = "a run whose reference stayed what it was"
        raise ConfigError("reference", config.choices["reference"], allowed, "This one's is not kept.")
    config = replace(config, reference=REFERENCES.named("frozen").Config())
    folder = str((run / "model").resolve())
    if (run / "model" / ADAPTER).exists():
        existing: Any = ADAPTERS.named("existing").Config
        return replace(config, adapter=existing(path=folder))
    kind: Any = MODELS.named("hf").Config
    kept = [of.name for of in fields(kind) if hasattr(config.model, of.name) and of.name not in OF_ORIGIN]
    model = kind(path=folder, **{name: getattr(config.model, name) for name in kept})
    return replace(config, model=model, adapter=ADAPTERS.named("none").Config())


def evaluate(evaluation: Evaluation, place: Place, order: RunOrder) -> int:
    """Evaluate on one rank; the main one writes and prints. The exit code: 0, or 2 refused."""
    config = order.config
    with left_afterwards(), arithmetic_as_before():
        try:
            check_plugin(config, place.world_size, starting=True)
            plugin = PLUGINS.build(config.plugin, place)
            data = chosen(evaluation.split, config)
            inputs = read(replace(order, data=data))
            loss = LOSSES.build(config.loss)
            if loss.needs_reference:
                own = evaluation.original
                source, adapter = MODELS.build(own.model), ADAPTERS.build(own.adapter)
                began = DATA.build(own.data).load(own.seed)
                inputs = replace(inputs, beginning=beginning(own, source, adapter, began)[1])
            prepared = ready(plugin, order, inputs)
            pairs = inputs.pairs.completed(inputs.pairs.held_out, loss.needs)
            weight = loss.weight if evaluation.weight is None else evaluation.weight
            share = prepared.sharing.of(pairs)
            metrics, results = measured(plugin, loss, share, prepared.reference, HELD_OUT, weight, evaluation.step)
            metrics |= {} if evaluation.weight is None else {"lam": evaluation.weight}
        except Refused as refused:
            if place.rank == 0:
                print(refusal(refused), file=sys.stderr)
            return REFUSED
        if place.rank == 0:
            order.folder.mkdir(parents=True, exist_ok=True)
            (order.folder / "held_out.parquet").unlink(missing_ok=True)  # perhaps of other pairs
            PairFiles(order.folder, inputs.pairs.texts).write(results)
            content = {
                "run": str(evaluation.run.resolve()),
                "steps": evaluation.step,
                "overrides": list(evaluation.command),
                "split": evaluation.split,
                "pairs": len(pairs),
                "eval": metrics,
            }
            write_atomically(order.folder / "evaluation.json", json.dumps(content, indent=2) + "\n")
            Console(highlight=False).print(evaluation_table({f"{len(pairs):,} pairs": metrics}))
            print(order.folder)
    return COMPLETED


def chosen(split: Split, config: RunConfig) -> SourceData:
    """The pairs in question, as those that are held out."""
    source = DATA.build(config.data)
    if split is Split.all:
        return source.whole(config.seed)
    data = source.load(config.seed)
    if split is Split.held_out:
        return data
    if not data.test:
        allowed = "held_out or all: the run kept no pairs for a test"
        raise ConfigError("--split", "test", allowed, "Choose one of these.")
    kept = data.kept and replace(data.kept, held_out=data.kept.test, test=data.kept.test[:0])
    return replace(data, held_out=data.test, test=(), kept=kept)


if __name__ == "__main__":
    sys.exit(main())
