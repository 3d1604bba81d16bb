"""Reference policies: the model that DPO-like losses compare with. A loss only says that it needs one.

Frozen and cached references give the same numbers; they differ in memory and time.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
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
        """Score every pair once, or read what an earlier run has scored."""
        pairs = {TRAIN: data.train(range(train_pairs)), HELD_OUT: data.held_out}
        path = Path(self.config.folder).expanduser() / f"{self._fingerprint(pairs)}.safetensors"
        here = self.plugin.sum(torch.tensor([float(path.exists())]))
        tensors = _read(path) if int(here) == self.plugin.data_parallel_size else None
        if tensors is None:
            log.info("scoring %d pairs under the reference policy", sum(map(len, pairs.values())))
            tensors = {}
            for split, of_split in pairs.items():
                tensors |= self._score(split, of_split, micro_batch_size)
            if self.plugin.is_main:
                _write(path, tensors)
        self.of_row = {split: _by_row(split, tensors) for split in pairs}

    def logps(self, split: str, pairs: Sequence[TokenizedPair], micro_batches: Sequence[Batch]) -> PairLogps:
        """See Reference."""
        of_row = self.of_row[split]
        if not pairs:
            return next(iter(of_row.values())).slice(0, 0)
        return PairLogps.concatenate([of_row[pair.row] for pair in pairs])

    def _fingerprint(self, pairs: dict[str, list[TokenizedPair]]) -> str:
        run_by = f"{type(self.plugin).__name__} {self.plugin.config} {sorted(need.name for need in self.needs)}"
        digest = hashlib.sha256(f"{self.plugin.weights_digest()} {run_by}".encode())
        for of_split in pairs.values():
            digest_pairs(digest, of_split)
        return digest.hexdigest()[:32]

    def _score(self, split: str, pairs: list[TokenizedPair], micro_batch_size: int) -> dict[str, Tensor]:
        """Every rank scores its share and gets the whole."""
        plugin, parts, rows = self.plugin, [], []
        chunk = 64 * micro_batch_size * plugin.data_parallel_size
        for start in range(0, len(pairs), chunk):
            of_chunk = pairs[start : start + chunk]
            shares = share(of_chunk, micro_batch_size, plugin.data_parallel_size, plugin.data_parallel_rank)
            own = plugin.score([self.layout.collate(part, self.needs) for part in shares])
            parts.append(gather_logps(plugin, own)[0])
            rows += plugin.gather(torch.tensor([pair.row for part in shares for pair in part], dtype=torch.int64))
        tensors = {f"{split}/rows": torch.cat(rows)}
        for span, logps in PairLogps.concatenate(parts).by_span().items():
            tensors |= {f"{split}/{span.name}/values": logps.values, f"{split}/{span.name}/lengths": logps.lengths}
        return tensors


def _by_row(split: str, tensors: dict[str, Tensor]) -> dict[int, PairLogps]:
    """Each pair's log-probabilities by its row; taken apart once, for every step looks pairs up."""
    rows = tensors[f"{split}/rows"].tolist()
    spans = [span for span in Span if f"{split}/{span.name}/values" in tensors]
    lengths = {span: tensors[f"{split}/{span.name}/lengths"] for span in spans}
    values = {span: tensors[f"{split}/{span.name}/values"].split(lengths[span].tolist()) for span in spans}
    return {
        row: PairLogps.from_spans({span: TokenLogps(values[span][i], lengths[span][i : i + 1]) for span in spans})
        for i, row in enumerate(rows)
    }


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    log.info("reference log-probabilities read from %s", path)
    return load_file(path)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
    beside.replace(path)
