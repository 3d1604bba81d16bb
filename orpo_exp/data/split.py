"""Which pairs are trained on and which are held out."""

import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from orpo_exp.data.base import IN_EVALUATION, KeptData, SourceData
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


def divided(
    train: Sequence[Part],
    evaluation: Sequence[Part],
    eval_size: float,
    seed: int,
    deduplicate: bool = False,
    draw: Draw = torch.cat,
) -> SourceData:
    """Hold out some of the pairs where none to evaluate on are given.

    deduplicate: of equal pairs the first is used, one that is evaluated on before all. draw: of the places of training
    pairs, those of each part together, the ones that an epoch has.
    """
    texts = [part.texts for part in (*train, *evaluation)]
    sizes = [len(part.texts) for part in train]
    trained, held = torch.arange(sum(map(len, texts))).split([sum(sizes), sum(map(len, texts)) - sum(sizes)])
    skipped: dict[str, list[int]] = {}
    for part, where in [(part, "") for part in train] + [(part, IN_EVALUATION) for part in evaluation]:
        for reason, numbers in part.skipped.items():
            skipped.setdefault(where + reason, []).extend(numbers)
    if deduplicate:
        order = torch.cat([held, trained])
        first = torch.empty(len(order), dtype=torch.bool)
        first[order] = first_of_each(torch.cat([of.hashes() for of in texts])[order])
        for places, where in ((trained, ""), (held, IN_EVALUATION)):
            if again := View(texts, places[~first[places]]):
                skipped[where + AGAIN] = [pair.row for pair in again]
        trained, held = trained[first[trained]], held[first[held]]
    if not evaluation:
        ranks = prompt_ranks(texts[0].kept, texts)
        kept, out = hold_out(ranks[trained], eval_size, seed)
        trained, held = trained[kept], trained[out]
    ends = torch.tensor(sizes).cumsum(0)
    of_part = torch.bucketize(trained, ends, right=True)
    drawn = draw([trained[of_part == number] for number in range(len(sizes))])
    form = ", ".join(dict.fromkeys(part.form for part in train))
    return SourceData.of_kept(KeptData(texts, drawn, held), skipped, form)


def subset(size: int, rows: float, seed: int) -> Tensor:
    """Which of so many are used: below 1 a share, from 1 on a number, drawn by the seed, in their order."""
    wanted = min(size, max(1, round(rows * size) if rows < 1 else int(rows)))
    return torch.tensor(sorted(random.Random(seed).sample(range(size), wanted)))


def hold_out(prompts: Tensor, eval_size: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places of training and of held-out pairs, in their order. All pairs of a prompt go to the same side: none is both
    trained on and tested. prompts: (n,) int64, for each pair which prompt it has, as `prompt_ranks` numbers them."""
    wanted = max(1, round(eval_size * len(prompts)) if eval_size < 1 else int(eval_size))
    _, of = prompts.unique(return_inverse=True)
    pairs_of = of.bincount()
    order = list(range(len(pairs_of)))
    random.Random(seed).shuffle(order)
    enough = int((pairs_of[order].cumsum(0) < wanted).sum()) + 1
    held = torch.isin(of, torch.tensor(order[:enough]))
    if held.all():
        allowed = f"a size that leaves pairs to train on: there are {len(prompts)} pairs with {len(order)} prompts"
        do = "Lower it, add data, or name other data to evaluate on."
        raise ConfigError("data.eval_size", eval_size, allowed, do)
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
