"""Reference policies: the model that DPO-like losses compare with. A loss only says that it needs one.

Frozen and cached references give the same numbers; they differ in memory and time.
"""

import hashlib
import logging
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from orpo_exp.data.tokenize import TokenizedData, digest_pairs
from orpo_exp.layouts import Layout
from orpo_exp.plugins import Plugin
from orpo_exp.registry import Registry
from orpo_exp.schema import Settings, setting
from orpo_exp.training.objectives import gather_logps
from orpo_exp.training.sharing import share
from orpo_exp.types import Batch, Need, PairLogps, Span, TokenizedPair, TokenLogps

log = logging.getLogger(__name__)

TRAIN, HELD_OUT = "train", "held_out"
Draws = Callable[[], Iterator[list[TokenizedPair]]]  # all pairs of a split, some at a time, as often as it is called


@dataclass
class ReferenceConfig(Settings):
    """Base of every reference policy's configuration."""


class Reference(ABC):
    """Scores pairs under the reference policy.

    beside_policy: the plugin must hold a second model. moves: that model changes, and is part of the run's state.
    per_pair: it knows single pairs, and nothing of their batch.
    """

    Config: ClassVar[type[ReferenceConfig]]
    beside_policy: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    per_pair: ClassVar[bool] = False

    def __init__(self, config: ReferenceConfig, plugin: Plugin, layout: Layout, needs: frozenset[Need]) -> None:
        self.config, self.plugin, self.layout, self.needs = config, plugin, layout, needs

    def begin(self, data: TokenizedData, train_pairs: int, micro_batch_size: int) -> None:
        """Called once before training; positions 0 .. train_pairs - 1 are those that will be trained on."""
        return None

    @abstractmethod
    def logps(self, split: str, pairs: Sequence[TokenizedPair], micro_batches: Sequence[Batch]) -> PairLogps:
        """Log-probabilities of this replica's pairs, which `micro_batches` hold in this order; no gradient."""

    def after_step(self, step: int) -> None:
        """Called after each optimizer step."""
        return None


REFERENCES: Registry[Reference] = Registry("reference")


@REFERENCES.register("frozen")
class Frozen(Reference):
    """The starting model, held beside the policy."""

    beside_policy = True

    @dataclass
    class Config(ReferenceConfig):
        """Nothing to set."""

    def logps(self, split: str, pairs: Sequence[TokenizedPair], micro_batches: Sequence[Batch]) -> PairLogps:
        """See Reference."""
        return self.plugin.score(micro_batches, reference=True)


@REFERENCES.register("synced")
class Synced(Frozen):
    """A held model that moves towards the policy now and then (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656)."""

    moves = True

    @dataclass
    class Config(ReferenceConfig):
        """every: steps between two moves; mix: how far it moves, 1 is all the way."""

        every: int = setting(100, ge=1)
        mix: float = setting(1.0, gt=0, le=1)

    config: Config

    def after_step(self, step: int) -> None:
        """See Reference."""
        if step % self.config.every == 0:
            self.plugin.sync_reference(self.config.mix)


@REFERENCES.register("cached")
class Cached(Reference):
    """The starting model's log-probabilities, computed before training by the policy itself and kept on disk.

    The file's name is a fingerprint of all tokens (and so of data, tokenizer, template and truncation), of the weights
    and of how they are run; a file that fits is used again.
    """

    per_pair = True

    @dataclass
    class Config(ReferenceConfig):
        """folder: where the files lie."""

        folder: str = setting("~/.cache/orpo_exp/reference", affects_numbers=False)

    config: Config

    def begin(self, data: TokenizedData, train_pairs: int, micro_batch_size: int) -> None:
        """Score every pair once, or read what an earlier run has scored.

        Pairs are drawn some at a time, and what is kept of them is flat: memory stays that of a loss without reference.
        """
        size = 64 * micro_batch_size * self.plugin.data_parallel_size
        held_out = data.held_out
        draws: dict[str, Draws] = {
            TRAIN: lambda: (data.train(range(i, min(i + size, train_pairs))) for i in range(0, train_pairs, size)),
            HELD_OUT: lambda: (held_out[i : i + size] for i in range(0, len(held_out), size)),
        }
        path = Path(self.config.folder).expanduser() / f"{self._fingerprint(draws)}.safetensors"
        here = self.plugin.sum(torch.tensor([float(path.exists())]))
        tensors = _read(path) if int(here) == self.plugin.data_parallel_size else None
        if tensors is None:
            log.info("scoring %d pairs under the reference policy", train_pairs + len(held_out))
            tensors = {}
            for split, draw in draws.items():
                tensors |= self._score(split, draw, micro_batch_size)
            if self.plugin.is_main:
                _write(path, tensors)
        self.scored = {split: Scored.of(split, tensors) for split in draws}

    def logps(self, split: str, pairs: Sequence[TokenizedPair], micro_batches: Sequence[Batch]) -> PairLogps:
        """See Reference."""
        return self.scored[split].find([pair.row for pair in pairs])

    def _fingerprint(self, draws: Mapping[str, Draws]) -> str:
        run_by = f"{type(self.plugin).__name__} {self.plugin.config} {sorted(need.name for need in self.needs)}"
        digest = hashlib.sha256(f"{self.plugin.weights_digest()} {run_by}".encode())
        for draw in draws.values():
            for pairs in draw():
                digest_pairs(digest, pairs)
        return digest.hexdigest()[:32]

    def _score(self, split: str, draw: Draws, micro_batch_size: int) -> dict[str, Tensor]:
        """Every rank scores its share and gets the whole."""
        plugin, parts, rows = self.plugin, [], []
        for pairs in draw():
            shares = share(pairs, micro_batch_size, plugin.data_parallel_size, plugin.data_parallel_rank)
            own = plugin.score([self.layout.collate(part, self.needs) for part in shares])
            parts.append(gather_logps(plugin, own)[0])
            rows += plugin.gather(torch.tensor([pair.row for part in shares for pair in part], dtype=torch.int64))
        tensors = {f"{split}/rows": torch.cat(rows)}
        for span, logps in PairLogps.concatenate(parts).by_span().items():
            tensors |= {f"{split}/{span.name}/values": logps.values, f"{split}/{span.name}/lengths": logps.lengths}
        return tensors


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of many pairs, looked up by row. rows: (pairs,) int64 in ascending order; place: where in
    `logps` each of them is."""

    rows: Tensor
    place: Tensor
    logps: PairLogps

    @staticmethod
    def of(split: str, tensors: Mapping[str, Tensor]) -> "Scored":
        """A split's part of what was scored, or read."""
        spans = {
            span: TokenLogps(tensors[f"{split}/{span.name}/values"], tensors[f"{split}/{span.name}/lengths"])
            for span in Span
            if f"{split}/{span.name}/values" in tensors
        }
        return Scored(*tensors[f"{split}/rows"].sort(), PairLogps.from_spans(spans))

    def find(self, rows: Sequence[int]) -> PairLogps:
        """The log-probabilities of the pairs of these rows, in this order."""
        wanted = torch.tensor(rows, dtype=torch.int64)
        found = torch.searchsorted(self.rows, wanted)
        assert torch.equal(self.rows[found], wanted), "every pair was scored before training"
        return self.logps.select(self.place[found])


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    log.info("reference log-probabilities read from %s", path)
    return load_file(path)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")  # others may write the same now
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
    beside.replace(path)
