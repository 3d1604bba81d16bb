"""Pairs as text, kept on disk: read from their files once, from then on by mapping."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orpo_exp.data.kept import ABOUT, AT_ONCE, Kept, Mapped, write
from orpo_exp.types import PreferencePair

PAIRS = "pairs.arrow"


@dataclass
class About:
    """What is known of the rows that pairs were read from. broken, skipped: reason -> numbers of the rows that make no
    pair, for they did not come as they were written, or otherwise. rows: all of them. form: how they came, for people.
    drawn_by: the seed, where it decided which answers make a pair."""

    broken: dict[str, list[int]] = field(default_factory=dict)
    skipped: dict[str, list[int]] = field(default_factory=dict)
    rows: int = 0
    form: str = ""
    drawn_by: int | None = None

    def write(self, folder: Path) -> None:
        """Write it down beside the pairs."""
        (folder / ABOUT).write_text(json.dumps(asdict(self)))


class Texts:
    """The pairs in a folder that `write_texts` filled. places: those of them that are meant, (n,) int64; None: all.
    first_row: what is added to their rows' numbers. key: what tells them from others, but for the numbers."""

    def __init__(self, kept: Kept, folder: Path, places: Tensor | None = None, first_row: int = 0) -> None:
        self.kept, self.folder, self.places, self.first_row = kept, folder, places, first_row
        self.key = folder.name if places is None else f"{folder.name} {digest_of(places)}"
        self._file = Mapped(folder / PAIRS)
        self._rows = [memoryview(batch.column("row").buffers()[1]).cast("q") for batch in self._file.batches]
        self._size = sum(map(len, self._file.batches)) if places is None else len(places)

    def only(self, places: Tensor) -> "Texts":
        """Some of them."""
        return Texts(self.kept, self.folder, places if self.places is None else self.places[places], self.first_row)

    def numbered_from(self, row: int) -> "Texts":
        """The same, as rows of a larger whole."""
        return Texts(self.kept, self.folder, self.places, row)

    def about(self) -> About:
        """What is known of all rows."""
        return About(**json.loads((self.folder / ABOUT).read_text()))

    def batches(self) -> Iterator[list[PreferencePair]]:
        """All of them, a number at a time."""
        if self.places is not None:
            for first in range(0, len(self), AT_ONCE):
                yield [self[place] for place in range(first, min(first + AT_ONCE, len(self)))]
            return
        for batch in self._file.batches:
            columns = (column.to_pylist() for column in batch.columns[:5])
            yield [self._pair(*of) for of in zip(*columns, strict=True)]
            self._file.let_go()

    def row(self, place: int) -> int:
        """The number of a pair's row."""
        batch, at = self._where(place)
        return self.first_row + self._rows[batch][at]

    def hashes(self) -> Tensor:
        """(n, 2) int64: equal where prompt and answers are, and by no chance else."""
        found = b"".join(bytes(b.column("hash").buffers()[1])[: 16 * len(b)] for b in self._file.batches)
        whole = torch.frombuffer(bytearray(found), dtype=torch.int64).view(-1, 2)
        return whole if self.places is None else whole[self.places]

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: int) -> PreferencePair:
        batch, at = self._where(place)
        self._file.read()
        return self._pair(*(column[at].as_py() for column in self._file.batches[batch].columns[:5]))

    def _pair(self, row: int, prompt: str, turns: bool, chosen: str, rejected: str) -> PreferencePair:
        return PreferencePair(self.first_row + row, tuple(json.loads(prompt)) if turns else prompt, chosen, rejected)

    def _where(self, place: int) -> tuple[int, int]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return divmod(place if self.places is None else int(self.places[place]), AT_ONCE)


def digest_of(numbers: Tensor) -> str:
    """A hash of a tensor of numbers."""
    return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16]


def write_texts(folder: Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs into a folder, as they come."""
    import pyarrow

    text = pyarrow.string()
    names = {"row": pyarrow.int64(), "prompt": text, "turns": pyarrow.int8(), "chosen": text, "rejected": text}
    coming = iter(pairs)
    batches = (columns_of(some) for some in iter(lambda: list(islice(coming, AT_ONCE)), []))
    write(folder / PAIRS, pyarrow.schema([*names.items(), ("hash", pyarrow.binary(16))]), batches)


def columns_of(pairs: Sequence[PreferencePair]) -> Mapping[str, list[Any]]:
    """Pairs as columns."""
    prompts = [p.prompt if isinstance(p.prompt, str) else json.dumps(p.prompt) for p in pairs]
    whole = [f"{len(of)} {len(p.chosen)} {of}{p.chosen}{p.rejected}" for of, p in zip(prompts, pairs, strict=True)]
    return {
        "row": [p.row for p in pairs],
        "prompt": prompts,
        "turns": [not isinstance(p.prompt, str) for p in pairs],
        "chosen": [p.chosen for p in pairs],
        "rejected": [p.rejected for p in pairs],
        "hash": [hashlib.blake2b(of.encode(), digest_size=16).digest() for of in whole],
    }
