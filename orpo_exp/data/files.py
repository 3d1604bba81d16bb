"""Preference data from files and from the Hugging Face hub, both read by `datasets`."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from typing_extensions import override

from orpo_exp.data.base import DATA, IN_EVALUATION, DataConfig, Source, SourceData
from orpo_exp.data.rows import PROMPT_COLUMNS, UnusableRow, parse_row
from orpo_exp.schema import ConfigError, setting
from orpo_exp.types import PreferencePair

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}

Usable = tuple[list[PreferencePair], dict[str, list[int]]]  # pairs, and the numbers of the other rows by reason


@dataclass
class FileConfig(DataConfig):
    """path: where the rows are; eval_size: held out, below 1 a share of the rows, from 1 on a number of pairs."""

    path: str = MISSING
    eval_size: float = setting(0.1, gt=0)


@DATA.register("json")
class JsonFiles(Source):
    """A local .json, .jsonl, .parquet or .csv file, or a folder of such files of one kind."""

    @dataclass
    class Config(FileConfig):
        """eval_path: a file or folder to evaluate on instead of holding rows out."""

        eval_path: str | None = None

    config: Config

    @override
    def load(self, seed: int) -> SourceData:
        c = self.config
        train = _read_files(c.path, "data.path")
        evaluation = _read_files(c.eval_path, "data.eval_path") if c.eval_path else None
        return _split(train, evaluation, c.eval_size, seed)


@DATA.register("hub")
class Hub(Source):
    """A data set of the Hugging Face hub, or a local folder of the same form."""

    @dataclass
    class Config(FileConfig):
        """subset, split, revision: as the hub names them; eval_split: a split to evaluate on instead of holding out."""

        subset: str | None = None
        split: str = "train"
        eval_split: str | None = None
        revision: str | None = None

    config: Config

    @override
    def load(self, seed: int) -> SourceData:
        c = self.config
        # `datasets` 4 and later run no code that comes with the data; earlier ones are told so by not being asked
        load = partial(_load, c.path, name=c.subset, revision=c.revision)
        train = load("data.path", c.path, split=c.split)
        evaluation = load("data.eval_split", c.eval_split, split=c.eval_split) if c.eval_split else None
        return _split(train, evaluation, c.eval_size, seed)


def _read_files(path: str, key: str) -> Usable:
    root = Path(path).expanduser()
    if not root.exists():
        raise ConfigError(key, path, "a file or folder that exists", "Check the path; it is relative to where you are.")
    files = sorted(f for f in root.rglob("*") if f.suffix in BUILDERS) if root.is_dir() else [root]
    builders = {BUILDERS.get(f.suffix) for f in files}
    if len(builders) != 1 or None in builders:
        raise ConfigError(key, path, f"files of one kind out of {', '.join(BUILDERS)}", "Convert or move the others.")
    if not any(f.stat().st_size for f in files):
        raise ConfigError(key, path, "a file with at least two rows", "This one is empty.")
    return _load(str(builders.pop()), key, path, data_files=[str(f) for f in files], split="train")


def _load(builder: str, key: str, given: str, **arguments: Any) -> Usable:
    import datasets

    verbosity, silent = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors are told below
    try:
        rows = datasets.load_dataset(builder, **arguments)
    except Exception as error:  # of nearly any type: what else can go wrong here is the data that was named
        cause = error.__cause__ or error
        reason = f"Reading it failed: {type(cause).__name__}: {cause}".splitlines()[0]
        raise ConfigError(key, given, "preference data that `datasets` can read", reason) from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not silent:
            datasets.enable_progress_bars()
    return _usable(rows, key, given)


def _usable(rows: Any, key: str, given: str) -> Usable:
    """The usable rows of a `datasets.Dataset`; ConfigError about the setting that named them where there is none."""
    columns = ", ".join(sorted(rows.column_names))
    if not {"chosen", "rejected"} <= set(rows.column_names):
        allowed = f"rows with `chosen`, `rejected` and one of {', '.join(PROMPT_COLUMNS)}"
        raise ConfigError(key, given, allowed, f"This has the columns {columns or '(none)'}: rename them.")
    pairs: list[PreferencePair] = []
    skipped: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        try:
            pairs.append(parse_row(number, row))
        except UnusableRow as reason:
            skipped.setdefault(str(reason), []).append(number)
    if not pairs:
        reasons = "; ".join(f"{reason}: {len(numbers)} rows" for reason, numbers in skipped.items()) or "no row at all"
        found = f"It has none ({reasons}); its columns are {columns}."
        raise ConfigError(key, given, "data with at least one usable row", found)
    return pairs, skipped


def _split(train: Usable, evaluation: Usable | None, eval_size: float, seed: int) -> SourceData:
    """Hold out some of the rows where none to evaluate on are given."""
    pairs, skipped = train
    if evaluation is None:
        pairs, held_out = hold_out(pairs, eval_size, seed)
    else:
        held_out, skipped_of_these = evaluation
        skipped |= {IN_EVALUATION + reason: numbers for reason, numbers in skipped_of_these.items()}
    return SourceData(train=pairs, size=len(pairs), held_out=held_out, skipped=skipped)


def hold_out(
    pairs: Sequence[PreferencePair], eval_size: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and held-out pairs. All pairs of a prompt go to the same side: none is both trained on and tested."""
    wanted = round(eval_size * len(pairs)) if eval_size < 1 else int(eval_size)
    rows_of: dict[str, list[int]] = {}
    for pair in pairs:
        rows_of.setdefault(str(pair.prompt), []).append(pair.row)
    prompts = sorted(rows_of)
    random.Random(seed).shuffle(prompts)
    held: set[int] = set()
    for prompt in prompts:
        if len(held) >= max(wanted, 1):
            break
        held |= set(rows_of[prompt])
    train = [pair for pair in pairs if pair.row not in held]
    if not train:
        allowed = f"a size that leaves pairs to train on: there are {len(pairs)} pairs with {len(prompts)} prompts"
        do = "Lower it, add data, or name other data to evaluate on."
        raise ConfigError("data.eval_size", eval_size, allowed, do)
    return train, [pair for pair in pairs if pair.row in held]
