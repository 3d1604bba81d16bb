"""Reference policies: the model that DPO-like losses compare with. A loss only says that it needs one.

Frozen and cached references give the same numbers; they differ in memory and time.
"""

import hashlib
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import safetensors.torch
import torch
from torch import Tensor
from typing_extensions import override

from orpo_exp.data.tokenize import TokenizedData, digest_pairs
from orpo_exp.files import written_beside
from orpo_exp.plugins import Plugin, Which
from orpo_exp.registry import Registry
from orpo_exp.schema import Settings, setting
from orpo_exp.training.objectives import gather_logps, gather_rows
from orpo_exp.training.sharing import Share, Sharing
from orpo_exp.training.stop import Stopped, StopRequest
from orpo_exp.types import PairLogps, Span, TokenizedPair, TokenLogps

log = logging.getLogger(__name__)

TRAIN, HELD_OUT, TEST = "train", "held_out", "test"
PARTS = "reference_parts"  # in the run's folder
PART = 512  # pairs of each replica that are scored and kept as one part
Draws = Callable[
    [], Iterator[Sequence[TokenizedPair]]
]  # all pairs of a split, some at a time, as often as it is called


@dataclass
class ReferenceConfig(Settings):
    """Base of every reference policy's configuration."""


class Reference(ABC):
    """Scores pairs under the reference policy.

    beside_policy: the plugin must hold a second model. moves: that model changes, and is part of the run's state.
    per_pair: it knows single pairs, and nothing of their batch. of_trained: of the second model it wants what is
    trained alone, which must be less than the whole.
    """

    Config: ClassVar[type[ReferenceConfig]] = ReferenceConfig
    beside_policy: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    per_pair: ClassVar[bool] = False
    of_trained: ClassVar[bool] = False

    @classmethod
    def settled(cls, partial: bool) -> str | None:
        """The choice that stands for this one, where it is no choice of its own. partial: whether a part of the weights
        alone is trained."""
        return None

    def __init__(self, config: ReferenceConfig, plugin: Plugin, sharing: Sharing) -> None:
        self.config, self.plugin, self.sharing = config, plugin, sharing

    def begin(self, data: TokenizedData, train_pairs: int, folder: Path, stop: StopRequest) -> None:
        """Called once before training; positions 0 .. train_pairs - 1 are those that will be trained on.

        Raises Stopped where `stop` asks for it meanwhile; what is done by then is kept in the run's folder.
        """
        return None

    @abstractmethod
    def logps(self, split: str, share: Share) -> PairLogps:
        """Log-probabilities of this replica's pairs in the share's order; no gradient."""

    def after_step(self, step: int) -> None:
        """Called after each optimizer step."""
        return None


REFERENCES: Registry[Reference] = Registry("reference")


@REFERENCES.register("frozen")
class Frozen(Reference):
    """The starting model, held beside the policy."""

    beside_policy = True

    @override
    def logps(self, split: str, share: Share) -> PairLogps:
        return self.plugin.score(share.batches, Which.held)


@REFERENCES.register("auto")
class Auto(Frozen):
    """The starting model, as it costs the least memory; settled with the configuration."""

    @classmethod
    @override
    def settled(cls, partial: bool) -> str:
        return "base" if partial else "frozen"


@REFERENCES.register("base")
class Base(Frozen):
    """The policy with its adapter as it began: the numbers of `frozen`, without a second model."""

    of_trained = True


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

    @override
    def after_step(self, step: int) -> None:
        if step % self.config.every == 0:
            self.plugin.models[Which.held].move_towards(self.plugin.models[Which.policy], self.config.mix)


@REFERENCES.register("cached")
class Cached(Reference):
    """The starting model's log-probabilities, computed before training by the policy itself and kept on disk.

    The file's name is a fingerprint of all tokens (and so of data, tokenizer, template and truncation), of the weights
    and of how they are run; a file that fits is used again. A run keeps what it has scored in its own folder until all
    is done: one that is stopped goes on there.
    """

    per_pair = True

    @dataclass
    class Config(ReferenceConfig):
        """folder: where the files lie."""

        folder: str = setting("~/.cache/orpo_exp/reference", affects_numbers=False)

    config: Config

    @override
    def begin(self, data: TokenizedData, train_pairs: int, folder: Path, stop: StopRequest) -> None:
        """Score every pair once, or read what an earlier run has scored.

        Pairs are drawn some at a time, and what is kept of them is flat: memory stays that of a loss without reference.
        """
        size = PART * self.plugin.ranks.replicas

        def some_of(pairs: Sequence[TokenizedPair]) -> Draws:
            return lambda: (pairs[i : i + size] for i in range(0, len(pairs), size))

        draws: dict[str, Draws] = {
            TRAIN: lambda: (data.train(range(i, min(i + size, train_pairs))) for i in range(0, train_pairs, size)),
            HELD_OUT: some_of(data.held_out),
        } | ({TEST: some_of(data.test)} if data.test else {})
        path = Path(self.config.folder).expanduser() / f"{self._fingerprint(draws)}.safetensors"
        if self.plugin.ranks.everywhere(path.exists()):
            log.info("reference log-probabilities read from %s", path)
            tensors = safetensors.torch.load_file(path)
        else:
            count = train_pairs + len(data.held_out) + len(data.test)
            log.info("scoring %d pairs under the reference policy", count)
            parts = folder / PARTS / f"{path.stem}-by-{size}"
            tensors = {}
            for split, draw in draws.items():
                tensors |= _joined([self._part(parts, split, i, pairs, stop) for i, pairs in enumerate(draw())])
            if self.plugin.ranks.is_main:
                _write(path, tensors)
                shutil.rmtree(folder / PARTS, ignore_errors=True)
        # by split: rows of the data, (pairs,) int64 in ascending order; where each is in the log-probabilities; these
        self.scored = {split: (*tensors[f"{split}/rows"].sort(), _logps(split, tensors)) for split in draws}

    @override
    def logps(self, split: str, share: Share) -> PairLogps:
        rows, place, logps = self.scored[split]
        wanted = torch.tensor([pair.row for pair in share.pairs], dtype=torch.int64)
        found = torch.searchsorted(rows, wanted)
        assert torch.equal(rows[found], wanted), "every pair was scored before training"
        return logps.select(place[found])

    def _fingerprint(self, draws: Mapping[str, Draws]) -> str:
        needs = sorted(need.name for need in self.sharing.needs)
        run_by = f"{type(self.plugin).__name__} {self.plugin.config} {needs}"
        digest = hashlib.sha256(f"{self.plugin.models[Which.policy].digest()} {run_by}".encode())
        for draw in draws.values():
            for pairs in draw():
                digest_pairs(digest, pairs)
        return digest.hexdigest()[:32]

    def _part(
        self, folder: Path, split: str, number: int, pairs: Sequence[TokenizedPair], stop: StopRequest
    ) -> dict[str, Tensor]:
        """Some pairs' log-probabilities, whole on every rank: from disk, or scored by all ranks together."""
        ranks, path = self.plugin.ranks, folder / f"{split}-{number:06d}.safetensors"
        if ranks.everywhere(path.exists()):
            return safetensors.torch.load_file(path)
        if number_asked := stop.agreed(ranks):
            log.warning("stopped while scoring under the reference policy; what is scored is kept in %s", folder)
            raise Stopped(number_asked)
        share = self.sharing.of(pairs)
        whole, _ = gather_logps(ranks, self.plugin.score(share.batches))
        tensors = {f"{split}/rows": gather_rows(ranks, share.pairs)}
        for span, logps in whole.by_span().items():
            tensors |= {f"{split}/{span.name}/values": logps.values, f"{split}/{span.name}/lengths": logps.lengths}
        if ranks.is_main:
            _write(path, tensors)
        return tensors


def _logps(split: str, tensors: Mapping[str, Tensor]) -> PairLogps:
    """A split's part of what was scored, or read."""
    spans = {
        span: TokenLogps(tensors[f"{split}/{span.name}/values"], tensors[f"{split}/{span.name}/lengths"])
        for span in Span
        if f"{split}/{span.name}/values" in tensors
    }
    return PairLogps.from_spans(spans)


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as beside:  # others may write the same now
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
