"""Preference data from files and from the Hugging Face hub."""

import dataclasses
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING
from typing_extensions import override

from orpo_exp.data.base import DATA, IN_EVALUATION, DataConfig, Source, SourceData
from orpo_exp.data.forms import AUTO, FORMS, NoForm, pairs_of
from orpo_exp.data.reading import PACKED, READERS, Broken, Row, check_encoding, kind, read
from orpo_exp.schema import ConfigError, Refused, Settings, setting
from orpo_exp.types import PreferencePair


@dataclass(frozen=True)
class Usable:
    """pairs, the numbers of the other rows by reason, and the form that they came in."""

    pairs: list[PreferencePair]
    skipped: dict[str, list[int]]
    form: str


@dataclass
class Columns(Settings):
    """The data's columns by the names that forms have, where they differ. system: a system message, which is read only
    where it is named."""

    prompt: str | None = setting(None, as_before=None)
    conversations: str | None = setting(None, as_before=None)
    context: str | None = setting(None, as_before=None)
    chosen: str | None = setting(None, as_before=None)
    rejected: str | None = setting(None, as_before=None)
    completions: str | None = setting(None, as_before=None)
    completion: str | None = setting(None, as_before=None)
    label: str | None = setting(None, as_before=None)
    system: str | None = setting(None, as_before=None)


@dataclass
class FileConfig(DataConfig):
    """path: where the rows are. form: how, see forms.py; columns: see Columns. eval_size: held
    out, below 1 a share of the rows, from 1 on a number of pairs. max_skipped: the share of rows that may be broken."""

    path: str = MISSING
    form: str = setting(AUTO, as_before=AUTO)
    columns: Columns = field(default_factory=Columns, metadata={"as_before": Columns()})
    eval_size: float = setting(0.1, gt=0)
    max_skipped: float = setting(0.1, ge=0, le=1, affects_numbers=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in (AUTO, *FORMS):
            raise ConfigError("form", self.form, ", ".join((AUTO, *FORMS)), "Choose one of these.")


@DATA.register("json")
class JsonFiles(Source):
    """A local .jsonl, .json, .csv or .parquet file, perhaps packed as .gz or .zst, or a folder of such files."""

    @dataclass
    class Config(FileConfig):
        """eval_path: a file or folder to evaluate on instead of holding rows out. encoding: of text files."""

        eval_path: str | None = None
        encoding: str = setting("utf-8", as_before="utf-8")

        def __post_init__(self) -> None:
            super().__post_init__()
            check_encoding("encoding", self.encoding)

    config: Config

    @override
    def load(self, seed: int) -> SourceData:
        c = self.config
        train = _read_files(c, c.path, "data.path", seed)
        evaluation = _read_files(c, c.eval_path, "data.eval_path", seed) if c.eval_path else None
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
        train = self._rows("data.path", c.path, c.split, seed)
        evaluation = self._rows("data.eval_split", c.eval_split, c.eval_split, seed) if c.eval_split else None
        return _split(train, evaluation, c.eval_size, seed)

    def _rows(self, key: str, given: str, split: str, seed: int) -> Usable:
        import datasets

        c = self.config
        verbosity, silent = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(logging.CRITICAL)  # its errors are told below
        try:
            # `datasets` 4 and later run no code that comes with the data; earlier ones are told so by not being asked
            rows = datasets.load_dataset(c.path, name=c.subset, revision=c.revision, split=split)
        except Exception as error:  # of nearly any type: what else can go wrong here is the data that was named
            cause = error.__cause__ or error
            reason = f"Reading it failed: {type(cause).__name__}: {cause}".splitlines()[0]
            raise ConfigError(key, given, "preference data that `datasets` can read", reason) from error
        finally:
            datasets.logging.set_verbosity(verbosity)
            if not silent:
                datasets.enable_progress_bars()
        return _usable(c, [(c.path, rows)], key, given, seed)


def _read_files(config: JsonFiles.Config, path: str, key: str, seed: int) -> Usable:
    root = Path(path).expanduser()
    if not root.exists():
        raise ConfigError(key, path, "a file or folder that exists", "Check the path; it is relative to where you are.")
    files = sorted(f for f in root.rglob("*") if kind(f)) if root.is_dir() else [root]
    if not files or not kind(files[0]):
        allowed = f"a file, or a folder with files, ending in {', '.join(READERS)}, and perhaps {', '.join(PACKED)}"
        raise ConfigError(key, path, allowed, "Convert it.")
    if not any(f.stat().st_size for f in files):
        raise ConfigError(key, path, "a file with at least two rows", "This one is empty.")
    try:
        parts = [(str(f.relative_to(root)) if root.is_dir() else f.name, read(f, config.encoding)) for f in files]
        return _usable(config, parts, key, path, seed)
    except Refused as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(key, path, "preference data that can be read", f"{error}.") from error


def _usable(
    config: FileConfig, parts: Sequence[tuple[str, Iterable[Row | Broken]]], key: str, given: str, seed: int
) -> Usable:
    """The usable rows of some files by name, numbered through; ConfigError about the setting that named them where
    there is none, or where too many are broken. Of several files, the reasons name each and count its own rows."""
    pairs: list[PreferencePair] = []
    broken: dict[str, list[int]] = {}
    skipped: dict[str, list[int]] = {}
    forms: dict[str, int] = {}
    columns = {name: of for name, of in vars(config.columns).items() if of is not None}
    first = 0
    for name, rows in parts:
        try:
            form, found = pairs_of(rows, config.form, columns, seed)
        except NoForm as none:
            wanted = f"rows of form {config.form}" if config.form != AUTO else "rows in a form that is known"
            allowed = f"{wanted}: {_told(config.form)}"
            do = f"{name} has the {none}. Name those that are meant: data.columns.chosen=..., say."
            raise ConfigError(key, given, allowed, do) from None
        forms[form] = forms.get(form, 0) + 1
        place = f"{name}: " if len(parts) > 1 else ""
        pairs += [dataclasses.replace(pair, row=first + pair.row) for pair in found.pairs] if first else found.pairs
        for kept, of in ((broken, found.broken), (skipped, found.skipped)):
            for reason, numbers in of.items():
                kept.setdefault(place + reason, []).extend(numbers)
        first += found.rows
    if not pairs:
        found_none = f"It has none ({_told_of(broken | skipped) or 'no row at all'})."
        raise ConfigError(key, given, "data with at least one usable row", found_none)
    unreadable = sum(map(len, broken.values()))
    let_pass = max(config.max_skipped * first, config.max_skipped > 0)  # a single one costs itself only
    if unreadable > let_pass:
        allowed = f"data of whose rows at most a share of data.max_skipped={config.max_skipped:g} is broken"
        do = f"Of its {first} rows {unreadable} are: {_told_of(broken)}. Mend them, or raise data.max_skipped."
        raise ConfigError(key, given, allowed, do)
    told = [f"{form} in {count} files" if len(parts) > 1 else form for form, count in forms.items()]
    return Usable(pairs, broken | skipped, ", ".join(told))


def _told(form: str) -> str:
    wanted = FORMS if form == AUTO else {form: FORMS[form]}
    said = [[of if isinstance(of, str) else " or ".join(of) for of in of_form.columns] for of_form in wanted.values()]
    return "; ".join(f"{name} ({', '.join(columns)})" for name, columns in zip(wanted, said, strict=True))


def _told_of(rows: Mapping[str, Sequence[int]]) -> str:
    def few(numbers: Sequence[int]) -> str:
        return ", ".join(map(str, sorted(numbers)[:5])) + (", ..." if len(numbers) > 5 else "")

    return "; ".join(f"{reason}: {len(numbers)} ({few(numbers)})" for reason, numbers in rows.items())


def _split(train: Usable, evaluation: Usable | None, eval_size: float, seed: int) -> SourceData:
    """Hold out some of the rows where none to evaluate on are given."""
    pairs, skipped = train.pairs, train.skipped
    if evaluation is None:
        pairs, held_out = hold_out(pairs, eval_size, seed)
    else:
        held_out = evaluation.pairs
        skipped |= {IN_EVALUATION + reason: numbers for reason, numbers in evaluation.skipped.items()}
    return SourceData(train=pairs, size=len(pairs), held_out=held_out, skipped=skipped, form=train.form)


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
