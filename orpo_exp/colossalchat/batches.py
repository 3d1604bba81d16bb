"""ColossalChat's batches as pairs: padding and masks end here."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from orpo_exp.plugins import Ranks
from orpo_exp.types import TokenizedPair

log = logging.getLogger(__name__)

KEYS = tuple(f"{answer}_{of}" for answer in ("chosen", "reject") for of in ("input_ids", "attention_mask", "loss_mask"))


def pairs_of(batch: Mapping[str, Tensor], apply_loss_mask: bool) -> list[TokenizedPair]:
    """The pairs of a batch, without their padding, on whichever side it lies.

    batch: KEYS, (pairs, length) each. What the loss mask leaves out before an answer is its prompt, and what it leaves
    out behind is left out. apply_loss_mask: false takes all of a text but its first token as the answer.

    A pair of which an answer has no token, because it was cut there, is skipped with a warning. Raises ValueError for
    keys that are missing, answers with gaps in their mask, and prompts that differ within a pair.
    """
    if missing := [key for key in KEYS if key not in batch]:
        raise ValueError(
            f"a batch has the keys {', '.join(batch)}; it needs {', '.join(KEYS)} ({missing[0]} is missing)"
        )
    pairs, emptied = [], []
    for row in range(len(batch[KEYS[0]])):
        chosen, rejected = (
            _split(row, *(batch[f"{answer}_{of}"][row].cpu() for of in ("input_ids", "attention_mask", "loss_mask")))
            if apply_loss_mask
            else _whole(batch[f"{answer}_input_ids"][row].cpu(), batch[f"{answer}_attention_mask"][row].cpu())
            for answer in ("chosen", "reject")
        )
        if not (len(chosen[1]) and len(rejected[1])):
            emptied.append(row)
        elif not len(chosen[0]) or not chosen[0].equal(rejected[0]):
            what = "have no prompt" if not len(chosen[0]) else "do not continue the same prompt tokens"
            raise ValueError(
                f"the answers of pair {row} of a batch {what}: both texts begin with it, loss_mask 0 there"
            )
        else:
            pairs.append(TokenizedPair(row, chosen[0], chosen[1], rejected[1]))
    if emptied:
        log.warning("skipped %d pairs of a batch: nothing of an answer is left of them; raise max_length", len(emptied))
    return pairs


def _split(row: int, ids: Tensor, attention: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Prompt and answer of a text, 1-D int32 each."""
    real = attention.bool() | loss.bool()  # collators that pad with EOS may hide the answer's own from attention
    ids, scored = ids[real].int(), loss.bool()[real].nonzero().flatten()
    if not len(scored):
        return ids, ids[:0]
    first, last = int(scored[0]), int(scored[-1]) + 1
    if len(scored) != last - first:
        raise ValueError(
            f"the loss mask of pair {row} of a batch has gaps: an answer is scored from one token on to another"
        )
    return ids[:first], ids[first:last]


def _whole(ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
    """A text's first token, which nothing predicts, and the rest."""
    ids = ids[attention.bool()].int()
    return ids[:1], ids[1:]


class Stream:
    """The global batches of a training, drawn from each rank's own loader.

    accumulated: batches of a loader in a step; the last step of an epoch may have fewer. start: the epoch to begin
    with; where the caller told the sampler an index (ColossalChat's `set_start_index`), what lies before it counts as
    seen. seed: together with the epoch it decides what loaders draw that bring no generator of their own.
    """

    def __init__(
        self, loader: Any, ranks: Ranks, accumulated: int, apply_loss_mask: bool, start: int, seed: int
    ) -> None:
        if not hasattr(loader, "__len__"):
            raise ValueError(
                f"{type(loader).__name__} has no length; give a DataLoader that says how many batches it has"
            )
        self.loader, self.ranks, self.accumulated, self.apply_loss_mask = loader, ranks, accumulated, apply_loss_mask
        self.seed = seed
        self.sampler: Any = getattr(loader, "sampler", None)
        self.batch_size: int = getattr(loader, "batch_size", None) or 1
        seen = getattr(self.sampler, "start_index", 0)
        self._skip(0)  # or the loader counts what is left
        self.batches_per_epoch = ranks.largest(len(loader))
        self._skip(seen)
        if not self.batches_per_epoch:
            raise ValueError("the training loader has no batch: fewer pairs than its batch size, with drop_last?")
        self.steps_per_epoch = -(-self.batches_per_epoch // accumulated)
        self._skipped = -(-seen // self.batch_size)  # batches that the sampler leaves out by itself
        self.begun = start * self.steps_per_epoch + -(-self._skipped // accumulated)
        self._epoch, self._rows = -1, 0
        self._batches: Iterator[Mapping[str, Tensor]] = iter(())

    def epoch(self, step: int) -> int:
        """The epoch, from 0, of a step, from 1."""
        return (step - 1) // self.steps_per_epoch

    def batches_done(self, step: int) -> int:
        """Batches of its epoch that a rank has seen after a step."""
        return min(((step - 1) % self.steps_per_epoch + 1) * self.accumulated, self.batches_per_epoch)

    def draw(self, positions: Sequence[int]) -> list[TokenizedPair]:
        """All ranks' pairs of a step, called for one after another. positions: the step's place, from 0, alone."""
        (place,) = positions
        epoch, done = divmod(place, self.steps_per_epoch)
        if epoch != self._epoch:
            if self._epoch >= 0:
                self._skip(0)  # what was seen was seen in the first epoch
                self._skipped = 0
            self._epoch, self._batches = epoch, self._begin(epoch, done * self.accumulated - self._skipped)
        drawn = gathered(self.ranks, islice(self._batches, self.accumulated), self.apply_loss_mask, self._rows)
        if not drawn:
            raise ValueError(f"no pair of step {place + 1} has two answers left; raise the collator's max_length")
        self._rows += len(drawn)
        return drawn

    def _begin(self, epoch: int, seen: int) -> Iterator[Mapping[str, Tensor]]:
        """The batches of an epoch, but for the first ones: in an order that depends on nothing but seed and epoch."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + epoch)
            batches = iter(self.loader)
            drawn = list(islice(batches, seen + 1))  # a sampler draws when it is first asked
        return chain(drawn[seen:], batches)

    def _skip(self, samples: int) -> None:
        if hasattr(self.sampler, "set_start_index"):
            self.sampler.set_start_index(samples)


def gathered(
    ranks: Ranks, batches: Iterator[Mapping[str, Tensor]], apply_loss_mask: bool, first_row: int = 0
) -> list[TokenizedPair]:
    """The pairs of every replica's batches, on all ranks; rows are counted from `first_row` on."""
    own = [pair for batch in batches for pair in pairs_of(batch, apply_loss_mask)]
    parts = [ids for pair in own for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]
    lengths = ranks.gather(torch.tensor([len(part) for part in parts], dtype=torch.int64))
    tokens = ranks.gather(torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int32))
    said = [part for of, ids in zip(lengths, tokens, strict=True) for part in ids.split(of.tolist())]
    thirds = zip(said[::3], said[1::3], said[2::3], strict=True)
    return [TokenizedPair(first_row + i, *ids) for i, ids in enumerate(thirds)]
