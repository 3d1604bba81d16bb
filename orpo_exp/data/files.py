"""Preference data from files and from the Hugging Face hub."""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from typing_extensions import override

from orpo_exp.data.base import DATA, FiniteConfig, Source, SourceData
from orpo_exp.data.forms import AUTO, FORMS, NoForm, pairs_of
from orpo_exp.data.kept import Kept
from orpo_exp.data.reading import PACKED, READERS, Broken, Row, check_encoding, kind, read
from orpo_exp.data.split import Part, Parts, divided, subset, undivided
from orpo_exp.data.texts import About, Texts, write_texts
from orpo_exp.schema import ConfigError, Refused, Settings, setting
from orpo_exp.types import PreferencePair

NamedFiles = Sequence[tuple[str, Callable[[], Iterable[Row | Broken]]]]
AS_READ = 1  # raised where the same rows come to other pairs than before


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
class FileConfig(FiniteConfig):
    """path: where the rows are. form: how, see forms.py; columns: see Columns. rows: how many of the pairs are used,
    below 1 a share, from 1 on a number; None: all. max_skipped: the share of rows that may be broken."""

    path: str = MISSING
    form: str = setting(AUTO, as_before=AUTO)
    columns: Columns = field(default_factory=Columns, metadata={"as_before": Columns()})
    rows: float | None = setting(None, gt=0, as_before=None)
    max_skipped: float = setting(0.1, ge=0, le=1, affects_numbers=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in (AUTO, *FORMS):
            raise ConfigError("form", self.form, ", ".join((AUTO, *FORMS)), "Choose one of these.")


class Files(Source):
    """A source of which every pair is read once, and kept."""

    config: FileConfig

    @abstractmethod
    def parts(self, seed: int) -> Parts:
        """The pairs to train on, and those to evaluate on and for the test where they are given."""

    @override
    def load(self, seed: int) -> SourceData:
        c, seed = self.config, self.config.split_by(seed)
        return divided(self.parts(seed), c, seed)

    @override
    def whole(self, seed: int) -> SourceData:
        return undivided(self.parts(self.config.split_by(seed)))

    def part(self, key: str, given: str, identity: Any, files: NamedFiles, seed: int) -> Part:
        """The usable pairs of some files by name. key, given: the setting that names them. identity: plain values that
        tell them from others, and from what they were before they changed.

        Raises ConfigError where there is no pair, or where too many rows are broken.
        """
        c, kept = self.config, Kept(self.config.cache)
        facts = [AS_READ, identity, c.form, asdict(c.columns)]

        def fill(folder: Path) -> None:
            about = About()
            write_texts(folder, _pairs(c, files, about, key, given, seed))
            about.write(folder)

        texts = Texts(kept, kept.make("texts", facts, fill))
        about = texts.about()
        if about.drawn_by not in (None, seed):
            texts = Texts(kept, kept.make("texts", [*facts, seed], fill))
            about = texts.about()
        _check(about, c.max_skipped, key, given)
        return Part(texts, about.broken | about.skipped, about.form, about.rows)

    def some(self, part: Part, seed: int) -> Part:
        """So many of the pairs to train on as `rows` says."""
        rows = self.config.rows
        return part if rows is None else replace(part, texts=part.texts.only(subset(len(part.texts), rows, seed)))


@DATA.register("json")
class JsonFiles(Files):
    """A local .jsonl, .json, .csv or .parquet file, perhaps packed as .gz or .zst, or a folder of such files."""

    @dataclass
    class Config(FileConfig):
        """eval_path, test_path: a file or folder to evaluate on, or for the test, instead of holding rows out.
        encoding: of text files."""

        eval_path: str | None = None
        test_path: str | None = setting(None, as_before=None)
        encoding: str = setting("utf-8", as_before="utf-8")

        def __post_init__(self) -> None:
            super().__post_init__()
            check_encoding("encoding", self.encoding)
            _check_test(self.test_size, "test_path", self.test_path)

    config: Config

    @override
    def parts(self, seed: int) -> Parts:
        c = self.config
        train = self.some(self._read(c.path, "data.path", seed), seed)
        evaluation = [self._read(c.eval_path, "data.eval_path", seed)] if c.eval_path else []
        return Parts([train], evaluation, [self._read(c.test_path, "data.test_path", seed)] if c.test_path else [])

    def _read(self, path: str, key: str, seed: int) -> Part:
        root = Path(path).expanduser()
        if not root.exists():
            do = "Check the path; it is relative to where you are."
            raise ConfigError(key, path, "a file or folder that exists", do)
        files = sorted(f for f in root.rglob("*") if kind(f)) if root.is_dir() else [root]
        if not files or not kind(files[0]):
            allowed = f"a file, or a folder with files, ending in {', '.join(READERS)}, and perhaps {', '.join(PACKED)}"
            raise ConfigError(key, path, allowed, "Convert it.")
        if not any(f.stat().st_size for f in files):
            raise ConfigError(key, path, "a file with at least two rows", "This one is empty.")
        named = [(str(f.relative_to(root)) if root.is_dir() else f.name, f) for f in files]
        changed = [[name, f.stat().st_size, f.stat().st_mtime_ns] for name, f in named]
        identity = [str(root.resolve()), self.config.encoding, changed]
        return self.part(key, path, identity, [(n, partial(read, f, self.config.encoding)) for n, f in named], seed)


@DATA.register("hub")
class Hub(Files):
    """A data set of the Hugging Face hub, or a local folder of the same form."""

    @dataclass
    class Config(FileConfig):
        """subset, split, revision: as the hub names them; eval_split, test_split: a split to evaluate on, or for the
        test, instead of holding out."""

        subset: str | None = None
        split: str = "train"
        eval_split: str | None = None
        test_split: str | None = setting(None, as_before=None)
        revision: str | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            _check_test(self.test_size, "test_split", self.test_split)

    config: Config

    @override
    def parts(self, seed: int) -> Parts:
        c = self.config
        train = self.some(self._read("data.path", c.path, c.split, seed), seed)
        evaluation = [self._read("data.eval_split", c.eval_split, c.eval_split, seed)] if c.eval_split else []
        test = [self._read("data.test_split", c.test_split, c.test_split, seed)] if c.test_split else []
        return Parts([train], evaluation, test)

    def _read(self, key: str, given: str, split: str, seed: int) -> Part:
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
        return self.part(key, given, rows._fingerprint, [(c.path, lambda: rows)], seed)


def _check_test(size: float | None, key: str, named: str | None) -> None:
    """Test pairs are named or drawn."""
    if size is not None and named is not None:
        raise ConfigError("test_size", size, f"null beside {key}", "Leave one of them out.")


def _pairs(
    config: FileConfig, files: NamedFiles, about: About, key: str, given: str, seed: int
) -> Iterator[PreferencePair]:
    """The usable pairs of some files by name, their rows numbered through; what else there is to know is noted as it
    is read. Of several files, the reasons name each and count its own rows."""
    columns = {name: of for name, of in vars(config.columns).items() if of is not None}
    forms: Counter[str] = Counter()
    for name, rows in files:
        try:
            form, found = pairs_of(rows(), config.form, columns, seed)
            for pair in found.pairs:
                yield replace(pair, row=about.rows + pair.row) if about.rows else pair
        except NoForm as none:
            wanted = f"rows of form {config.form}" if config.form != AUTO else "rows in a form that is known"
            allowed = f"{wanted}: {_told(config.form)}"
            do = f"{name} has the {none}. Name those that are meant: data.columns.chosen=..., say."
            raise ConfigError(key, given, allowed, do) from None
        except ConfigError:
            raise
        except (Refused, OSError) as error:
            why = f"{name}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise ConfigError(key, given, "preference data that can be read", f"{why}.") from error
        forms[form] += 1
        if FORMS[form].drawn:
            about.drawn_by = seed
        place = f"{name}: " if len(files) > 1 else ""
        for kept, of in ((about.broken, found.broken), (about.skipped, found.skipped)):
            for reason, numbers in of.items():
                kept.setdefault(place + reason, []).extend(numbers)
        about.rows += found.rows
    told = [f"{form} in {count} files" if len(files) > 1 else form for form, count in forms.items()]
    about.form = ", ".join(told)


def _check(about: About, max_skipped: float, key: str, given: str) -> None:
    """Refuse what has no usable pair, or too many broken rows."""
    unreadable = sum(map(len, about.broken.values()))
    if about.rows == unreadable + sum(map(len, about.skipped.values())):
        found_none = f"It has none ({_told_of(about.broken | about.skipped) or 'no row at all'})."
        raise ConfigError(key, given, "data with at least one usable row", found_none)
    let_pass = max(max_skipped * about.rows, max_skipped > 0)  # a single one costs itself only
    if unreadable > let_pass:
        allowed = f"data of whose rows at most a share of data.max_skipped={max_skipped:g} is broken"
        found = f"Of its {about.rows} rows {unreadable} are: {_told_of(about.broken)}."
        do = f"{found} Mend them, or raise data.max_skipped."
        raise ConfigError(key, given, allowed, do)


def _told(form: str) -> str:
    wanted = FORMS if form == AUTO else {form: FORMS[form]}
    said = [[of if isinstance(of, str) else " or ".join(of) for of in of_form.columns] for of_form in wanted.values()]
    return "; ".join(f"{name} ({', '.join(columns)})" for name, columns in zip(wanted, said, strict=True))


def _told_of(rows: Mapping[str, Sequence[int]]) -> str:
    def few(numbers: Sequence[int]) -> str:
        return ", ".join(map(str, sorted(numbers)[:5])) + (", ..." if len(numbers) > 5 else "")

    return "; ".join(f"{reason}: {len(numbers)} ({few(numbers)})" for reason, numbers in rows.items())
