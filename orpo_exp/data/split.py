"""Which pairs are trained on and which are held out."""

import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from orpo_exp.data.base import IN_EVALUATION, IN_TEST, FiniteConfig, KeptData, SourceData
from orpo_exp.data.kept import Kept
from orpo_exp.data.texts import Texts
from orpo_exp.data.views import View
from orpo_exp.schema import ConfigError

RANKS = "ranks"
AGAIN = "the same pair again"

Draw = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Part:
    """What a source reads, or a part of it. skipped: reason -> numbers of the rows that make no pair. form: how rows
    came, for people. rows: how many there were, whatever became of them."""

    texts: Texts
    skipped: dict[str, list[int]]
    form: str
    rows: int

    def among(self, name: str, rows: int) -> "Part":
        """The same beside others, before which there are so many rows."""
        skipped = {f"{name}: {reason}": numbers for reason, numbers in self.skipped.items()}
        return Part(self.texts.numbered_from(rows), skipped, f"{self.form} ({name})", self.rows)


@dataclass(frozen=True)
class Parts:
    """What a source reads to train on, to evaluate on, and for the test; of the last two often nothing."""

    train: Sequence[Part]
    evaluation: Sequence[Part] = ()
    test: Sequence[Part] = ()

    @property
    def by_split(self) -> dict[str, Sequence[Part]]:
        """By what begins the reasons why rows of it are skipped."""
        return {"": self.train, IN_EVALUATION: self.evaluation, IN_TEST: self.test}

    @property
    def texts(self) -> list[Texts]:
        """Of all parts, in this order."""
        return [part.texts for of in self.by_split.values() for part in of]

    @property
    def skipped(self) -> dict[str, list[int]]:
        """Reason -> numbers of the rows that make no pair, of all parts."""
        found: dict[str, list[int]] = {}
        for where, of in self.by_split.items():
            for part in of:
                for reason, numbers in part.skipped.items():
                    found.setdefault(where + reason, []).extend(numbers)
        return found

    @property
    def form(self) -> str:
        """How the rows to train on came, for people."""
        return ", ".join(dict.fromkeys(part.form for part in self.train))


def divided(parts: Parts, config: FiniteConfig, seed: int, draw: Draw = torch.cat) -> SourceData:
    """Hold out some of the pairs where none to evaluate on are given, and of the rest keep some for the test.

    Of equal pairs that are to be used once one for the test is used before all, then one that is evaluated on, then the
    first. draw: of the places of training pairs, those of each part together, the ones that an epoch has.
    """
    splits = parts.by_split
    texts = parts.texts
    sizes = [len(part.texts) for part in parts.train]
    ends = [sum(len(part.texts) for part in of) for of in splits.values()]
    trained, held, tested = torch.arange(sum(ends)).split(ends)
    skipped = parts.skipped
    if config.deduplicate:
        order = torch.cat([tested, held, trained])
        first = torch.empty(len(order), dtype=torch.bool)
        first[order] = first_of_each(torch.cat([of.hashes() for of in texts])[order])
        for places, where in zip((trained, held, tested), splits, strict=True):
            if again := View(texts, places[~first[places]]):
                skipped[where + AGAIN] = [pair.row for pair in again]
        trained, held, tested = trained[first[trained]], held[first[held]], tested[first[tested]]
    all_trained = len(trained)
    if not parts.evaluation:
        ranks = prompt_ranks(texts[0].kept, texts)
        kept, out = hold_out(ranks[trained], "data.eval_size", config.eval_size, all_trained, seed)
        trained, held = trained[kept], trained[out]
    if config.test_size is not None and not parts.test:
        ranks = prompt_ranks(texts[0].kept, texts)
        kept, out = hold_out(ranks[trained], "data.test_size", config.test_size, all_trained, f"{seed} test")
        trained, tested = trained[kept], trained[out]
    of_part = torch.bucketize(trained, torch.tensor(sizes).cumsum(0), right=True)
    drawn = draw([trained[of_part == number] for number in range(len(sizes))])
    return SourceData.of_kept(KeptData(texts, drawn, held, tested), skipped, parts.form)


def undivided(parts: Parts) -> SourceData:
    """All pairs, held out and trained on as one pleases."""
    texts = parts.texts
    places = torch.arange(sum(map(len, texts)))
    return SourceData.of_kept(KeptData(texts, places, places, places[:0]), parts.skipped, parts.form)


def subset(size: int, rows: float, seed: int) -> Tensor:
    """Which of so many are used: below 1 a share, from 1 on a number, drawn by the seed, in their order."""
    wanted = min(size, max(1, round(rows * size) if rows < 1 else int(rows)))
    return torch.tensor(sorted(random.Random(seed).sample(range(size), wanted)))


def hold_out(prompts: Tensor, key: str, size: float, of_pairs: int, seed: int | str) -> tuple[Tensor, Tensor]:
    """Places of training and of held-out pairs, in their order. All pairs of a prompt go to the same side: none is both
    trained on and tested. prompts: (n,) int64, for each pair which prompt it has, as `prompt_ranks` numbers them. key,
    size: the setting that says how many, below 1 of so many pairs."""
    wanted = max(1, round(size * of_pairs) if size < 1 else int(size))
    _, of = prompts.unique(return_inverse=True)
    pairs_of = of.bincount()
    order = list(range(len(pairs_of)))
    random.Random(seed).shuffle(order)
    enough = int((pairs_of[order].cumsum(0) < wanted).sum()) + 1
    held = torch.isin(of, torch.tensor(order[:enough]))
    if held.all():
        allowed = f"a size that leaves pairs to train on: there are {len(prompts)} pairs with {len(order)} prompts"
        do = "Lower it, add data, or name other data to evaluate on."
        raise ConfigError(key, size, allowed, do)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def first_of_each(hashes: Tensor) -> Tensor:
    """(n,) bool: whether none before is equal. hashes: (n, 2) int64."""
    order = torch.arange(len(hashes))
    for column in (1, 0):
        order = order[hashes[order, column].argsort(stable=True)]
    ordered = hashes[order]
    first = torch.ones(len(hashes), dtype=torch.bool)
    first[order[1:]] = (ordered[1:] != ordered[:-1]).any(1)
    return first


def prompt_ranks(kept: Kept, texts: Sequence[Texts]) -> Tensor:
    """(n,) int64: for each pair of all texts the number of its prompt among all that there are, in order."""

    def fill(folder: Path) -> None:
        # on disk, for there may be more than memory holds
        base = sqlite3.connect(folder / "prompts.db", isolation_level=None)
        base.execute("PRAGMA journal_mode = OFF")
        base.execute("CREATE TABLE prompts (prompt BLOB)")
        base.execute("BEGIN")
        for of in texts:
            for batch in of.batches():
                base.executemany("INSERT INTO prompts VALUES (?)", ((str(pair.prompt).encode(),) for pair in batch))
        ranks = torch.empty(sum(map(len, texts)), dtype=torch.int64)
        rank, last = -1, None
        for place, prompt in base.execute("SELECT rowid, prompt FROM prompts ORDER BY prompt"):
            rank, last = rank + (prompt != last), prompt
            ranks[place - 1] = rank
        base.close()
        (folder / "prompts.db").unlink()
        ranks.numpy().tofile(folder / RANKS)

    folder = kept.make("prompts", [of.key for of in texts], fill)
    return torch.from_file(str(folder / RANKS), size=sum(map(len, texts)), dtype=torch.int64)
