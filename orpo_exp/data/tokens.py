"""Pairs as tokens, kept on disk beside their texts."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orpo_exp.data.kept import ABOUT, AT_ONCE, Mapped, write
from orpo_exp.data.pair_tokenizer import Encoded, PairTokenizer
from orpo_exp.data.texts import Texts
from orpo_exp.types import PreferencePair, TokenizedPair

if TYPE_CHECKING:
    import numpy
    import pyarrow

TOKENS = "tokens.arrow"
AS_TOKENIZED = 1  # raised where the same texts come to other tokens than before
SIDES = ("prompt", "chosen", "rejected")


class Tokens:
    """The tokens of texts, pair by pair; of one that is not usable there are none.

    unusable: place -> why. truncated, moved: (n,) bool, see Encoded. key: what tells them from others.
    """

    def __init__(self, texts: Texts, folder: Path) -> None:
        self.texts, self.key = texts, folder.name
        self._file = Mapped(folder / TOKENS)
        self._sides = [[ids_in(batch.column(side)) for batch in self._file.batches] for side in SIDES]
        about = json.loads((folder / ABOUT).read_text())
        self.unusable: dict[int, str] = {int(place): why for place, why in about["unusable"].items()}
        self.truncated, self.moved = self._marks("truncated"), self._marks("moved")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, place: int) -> TokenizedPair:
        batch, at = divmod(place, AT_ONCE)
        self._file.read()
        parts = (values[offsets[at] : offsets[at + 1]] for offsets, values in (side[batch] for side in self._sides))
        prompt, chosen, rejected = (torch.from_numpy(part.copy()) for part in parts)
        return TokenizedPair(self.texts.row(place), prompt, chosen, rejected)

    def _marks(self, name: str) -> Tensor:
        return torch.tensor([mark for batch in self._file.batches for mark in batch.column(name).to_pylist()]).bool()


def ids_in(column: "pyarrow.ListArray") -> "tuple[numpy.ndarray, numpy.ndarray]":
    """Where each pair's ids begin in those of all, and these, as they lie in the file."""
    import numpy  # a column's own `to_numpy` would import pandas first

    return tuple(numpy.frombuffer(of, dtype=numpy.int32) for of in (column.buffers()[1], column.buffers()[3]))  # type: ignore[return-value]


def tokens_of(texts: Sequence[Texts], encode: PairTokenizer) -> list[Tokens]:
    """The tokens of each of some texts, read where they are kept already."""
    how = facts_of(encode)
    return [Tokens(of, of.kept.make("tokens", [of.key, how], partial(write_tokens, of, encode))) for of in texts]


def write_tokens(texts: Texts, encode: PairTokenizer, folder: Path) -> None:
    """Tokenize texts into a folder, as they come."""
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    fields = [(side, ids) for side in SIDES] + [(mark, pyarrow.int8()) for mark in ("truncated", "moved")]
    unusable: dict[int, str] = {}
    batches = (columns_of(some, unusable, AT_ONCE * i) for i, some in enumerate(encode.stream(shown(texts))))
    write(folder / TOKENS, pyarrow.schema(fields), batches)
    (folder / ABOUT).write_text(json.dumps({"unusable": unusable}))


def columns_of(encoded: Sequence[Encoded | str], unusable: dict[int, str], first: int) -> Mapping[str, list[Any]]:
    """Pairs as columns; those that are not usable are noted, by place."""
    unusable |= {first + place: of for place, of in enumerate(encoded) if isinstance(of, str)}
    ids = [of.ids if isinstance(of, Encoded) else ([], [], []) for of in encoded]
    columns: dict[str, list[Any]] = dict(zip(SIDES, map(list, zip(*ids, strict=True)), strict=True))
    for mark in ("truncated", "moved"):
        columns[mark] = [isinstance(of, Encoded) and getattr(of, mark) for of in encoded]
    return columns


def shown(texts: Texts) -> Iterator[Sequence[PreferencePair]]:
    """The texts, some at a time; on a terminal a bar shows how far that has come, where it takes long."""
    from tqdm import tqdm

    with tqdm(desc="tokenizing", total=len(texts), unit=" pairs", delay=1, disable=None, leave=False) as bar:
        for some in texts.batches():
            yield some
            bar.update(len(some))


def facts_of(encode: PairTokenizer) -> Any:
    """What decides on the tokens of a text, as plain values."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        encode.tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            digest.update(path.name.encode() + path.read_bytes() if path.is_file() else b"")
    how = [encode.max_length, encode.min_prompt_length, encode.whole, encode.template, asdict(encode.lengths)]
    return [AS_TOKENIZED, digest.hexdigest(), version("transformers"), version("tokenizers"), *how]
