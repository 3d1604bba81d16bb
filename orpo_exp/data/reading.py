"""A file -> its rows, one after another. What cannot be read costs the row that it is in, and no other."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from orpo_exp.schema import ConfigError, Refused

PACKED = {".gz", ".zst"}
PART = 1 << 20  # bytes of a file that are read at a time, where lines do not say how far to read
ENDS = "the file ends in the middle of it"
BETWEEN = re.compile(r"[\s,]*")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read. why: in a few words, the same for all rows of a kind."""

    why: str


def read(path: Path, encoding: str) -> Iterator[Row | Broken]:
    """The rows of a file in their order. Its name says what it is: one of READERS, behind it perhaps one of PACKED.

    Raises Refused for what is no such file, or has another encoding throughout.
    """
    return READERS[kind(path)](path, encoding)


def kind(path: Path) -> str:
    """What the name of a file says that it is; empty where it says nothing that is read."""
    suffix = path.with_suffix("").suffix if path.suffix in PACKED else path.suffix
    return suffix if suffix in READERS else ""


def check_encoding(key: str, encoding: str) -> None:
    """Refuse with ConfigError an encoding that Python does not know."""
    try:
        codecs.lookup(encoding)
    except LookupError:
        do = "Say utf-8, latin-1, utf-16 or gb18030, for example."
        raise ConfigError(key, encoding, "the name of a text encoding", do) from None


def opened(path: Path) -> BinaryIO:
    """A file's bytes, unpacked."""
    if path.suffix == ".gz":
        import gzip

        return gzip.open(path)  # type: ignore[return-value]
    if path.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _json(path: Path, encoding: str) -> Iterator[Row | Broken]:
    """JSON in any of its shapes: an object a line, an array of objects, an object in which such an array lies."""
    start = b""
    with opened(path) as stream:
        for piece in _as_far_as_it_goes(lambda: stream.read1(1 << 16)):  # type: ignore[attr-defined]
            if isinstance(piece, Broken) and not start:
                raise Refused(f"{path.name} cannot be unpacked")
            if isinstance(piece, Broken) or len(start := start + piece) > 1 << 16:
                break
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and "16" not in encoding:
        raise Refused(f"{path.name} is utf-16: set data.encoding=utf-16")
    text = start.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n")
    if text.startswith("["):
        return _array(path, encoding)
    # an object that wraps an array begins with a line of its own, or is all that there is
    first, _, others = text.partition("\n")
    wraps = text.startswith("{") and (first.strip() == "{" or not others.strip())
    return _wrapped(path, encoding) if wraps else _lines(path, encoding)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _list_in(value: Any) -> list[str]:
    """Under which keys of an object lists of objects lie."""
    if not isinstance(value, dict) or {"chosen", "completions"} & value.keys():
        return []
    return [key for key, of in value.items() if isinstance(of, list) and of and isinstance(of[0], dict)]


def _wrapped(path: Path, encoding: str) -> Iterator[Row | Broken]:
    with opened(path) as stream:
        value = _loaded(stream.read().decode(encoding, errors="replace").lstrip("\ufeff"))
    if value is None:
        raise Refused(f"{path.name} begins as one JSON object, but is not whole; write one object a line")
    if len(keys := _list_in(value)) > 1:
        raise Refused(f"{path.name} holds several lists of rows: {', '.join(keys)}; keep one of them")
    for row in value[keys[0]] if keys else [value]:
        yield row if isinstance(row, dict) else Broken("not a JSON object")


def _lines(path: Path, encoding: str) -> Iterator[Row | Broken]:
    """An object a line; empty lines are passed over."""
    for line in _text_lines(path, encoding):
        if isinstance(line, Broken):
            yield line
        elif text := line.strip():
            row = _loaded(text)
            yield row if isinstance(row, dict) else Broken("not JSON" if row is None else "not a JSON object")


def _text_lines(path: Path, encoding: str) -> Iterator[str | Broken]:
    """The lines of a text, each decoded by itself where the encoding lets their ends be found before."""
    if "\n".encode(encoding) != b"\n":
        with io.TextIOWrapper(opened(path), encoding) as text:
            yield from _as_far_as_it_goes(text.readline)
        return
    with opened(path) as stream:
        for line in _as_far_as_it_goes(stream.readline):
            if isinstance(line, Broken):
                yield line
                continue
            try:
                yield line.removeprefix(codecs.BOM_UTF8).decode(encoding)
            except UnicodeDecodeError:
                yield Broken(f"not {encoding}; data.encoding says what it is")


def _as_far_as_it_goes(read: Callable[[], Any]) -> Iterator[Any]:
    """What is read, and where the file breaks off a broken row in place of the rest."""
    while True:
        try:
            found = read()
        except (OSError, EOFError):
            yield Broken(ENDS)
            return
        except UnicodeDecodeError as error:
            yield Broken(f"not {error.encoding} from there on; data.encoding says what it is")
            return
        if not found:
            return
        yield found


def _array(path: Path, encoding: str) -> Iterator[Row | Broken]:
    """The objects of a JSON array, of which a part of the file is held at a time. Behind a broken one it goes on with
    the next that has the keys of the first."""
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder(encoding)(errors="surrogateescape").decode
    buffer, place, like = "", 0, set[str]()
    with opened(path) as stream:
        parts = (part for part in _as_far_as_it_goes(lambda: stream.read(PART)) if not isinstance(part, Broken))

        def more() -> bool:
            nonlocal buffer, place
            part = next(parts, None)
            buffer, place = buffer[place:] + ("" if part is None else decode(part)), 0
            return part is not None

        more()
        place = buffer.index("[") + 1
        while True:
            place = BETWEEN.match(buffer, place).end()  # type: ignore[union-attr]  # it matches nothing as well
            if place == len(buffer):
                if more():
                    continue
                yield Broken(ENDS)
                return
            if buffer[place] == "]":
                return
            try:
                row, place = decoder.raw_decode(buffer, place)
            except (ValueError, RecursionError):
                if more():
                    continue
                following = _next_like(buffer, place + 1, like)
                yield Broken(ENDS if following is None else "not JSON")
                if following is None:
                    return
                place = following
                continue
            yield row if isinstance(row, dict) else Broken("not a JSON object")
            like = like or (set(row) if isinstance(row, dict) else set())


def _next_like(buffer: str, place: int, like: set[str]) -> int | None:
    """Where the next object with these keys begins; None where there is none."""
    for comma in re.compile(r",\s*(?=\{)").finditer(buffer, place):
        try:
            row, _ = json.JSONDecoder().raw_decode(buffer, comma.end())
        except (ValueError, RecursionError):
            continue
        if like <= row.keys():
            return comma.end()
    return None


def _csv(path: Path, encoding: str) -> Iterator[Row | Broken]:
    """Its first row names the columns. An empty field is none."""
    csv.field_size_limit(1 << 30)
    errors = "surrogateescape" if "\n".encode(encoding) == b"\n" else "strict"
    with io.TextIOWrapper(opened(path), encoding, errors, newline="") as text:
        rows = csv.DictReader(text, strict=True)
        if rows.fieldnames:
            rows.fieldnames = [name.removeprefix("\ufeff") for name in rows.fieldnames]
        while True:
            before = rows.reader.line_num
            try:
                row = next(rows, None)
            except csv.Error as error:
                ended = "end of data" in str(error)
                # a quote that is never closed has taken all lines that follow for one field
                for _ in range(rows.reader.line_num - before if ended else 1):
                    yield Broken("behind a quote that is never closed" if ended else "not CSV")
                continue
            except (OSError, EOFError, UnicodeDecodeError):
                yield Broken(ENDS)
                return
            if row is None:
                return
            whole = None not in row and None not in row.values()
            yield (
                {name: of or None for name, of in row.items()} if whole else Broken("not as many fields as the header")
            )


def _parquet(path: Path, encoding: str) -> Iterator[Row | Broken]:
    """A group of rows at a time; one that cannot be read costs its rows."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise Refused(f"{path.name} is no Parquet file: {str(error).splitlines()[0]}") from error
    for group in range(file.num_row_groups):
        try:
            table = file.read_row_group(group)
        except (OSError, pyarrow.ArrowException):
            yield from [Broken("in a group of rows that cannot be read")] * file.metadata.row_group(group).num_rows
            continue
        for batch in table.to_batches(max_chunksize=1000):
            yield from batch.to_pylist()


READERS: Mapping[str, Callable[[Path, str], Iterator[Row | Broken]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
