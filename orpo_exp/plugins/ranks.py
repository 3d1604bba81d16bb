"""What the ranks of a run say to each other."""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orpo_exp.plugins.processes import Place
from orpo_exp.schema import Refused
from orpo_exp.types import LossOutput

# How long ranks wait for one another: the main one may write a large model meanwhile. NCCL's own limit is 10 minutes.
PATIENCE = timedelta(hours=1)
# How long they wait for one another to start, and how many seconds for a word of each once one has failed.
TO_START = timedelta(minutes=10)
LAST_WORDS = 2.0


class RefusedByMain(Refused):
    """What the main rank refuses, raised on every rank."""


class Ranks:
    """The ranks of one run, and the replicas that they form. Made on every rank, which joins the others by it.

    rank, world_size: this process among all. replica, replicas: this rank's replica among those that share the global
    batch. A replica may be several ranks, which hold the same numbers.

    Every method is called on all ranks in the same order. What is summed or gathered each replica says
    once; what decides the way of the program (is the cache there, stop, where to go on) is agreed on by all ranks.
    """

    def __init__(self, place: Place, device: torch.device, replica_of: Sequence[int] | None = None) -> None:
        """replica_of: the replica of each rank, counted from 0; None: every rank is one."""
        self.rank, self.world_size, self.device = place.rank, place.world_size, device
        self._replica_of = list(range(self.world_size)) if replica_of is None else list(replica_of)
        assert len(self._replica_of) == self.world_size
        self.replica, self.replicas = self._replica_of[self.rank], max(self._replica_of) + 1
        # the first rank of each replica speaks for it
        self._speakers = [self._replica_of.index(replica) for replica in range(self.replicas)]
        self._store = join_process_group(place, "nccl" if device.type == "cuda" else "gloo")

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """Element-wise sum over the replicas of a float64 tensor of one shape, on the CPU."""
        total = numbers.to(self.device, torch.float64, copy=True)
        if self.rank not in self._speakers:
            total.zero_()
        dist.all_reduce(total)
        return total.cpu()

    def total(self, number: float) -> float:
        """The sum of all ranks' numbers, in float64; for what ranks hold in parts."""
        value = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(value)
        return float(value)

    def gather(self, values: Tensor) -> list[Tensor]:
        """Every replica's 1-D tensor, of any length each, on the CPU, in the order of the replicas."""
        said = self._from_all(values)
        return [said[rank] for rank in self._speakers]

    def exchange(self, text: str) -> list[str]:
        """What every rank says, in the order of the ranks."""
        said = self._from_all(torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8))
        return [bytes(part.tolist()).decode("utf-8") for part in said]

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        value = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    def smallest(self, number: int) -> int:
        """The smallest of all ranks' numbers."""
        return -self.largest(-number)

    def everywhere(self, so: bool) -> bool:
        """Whether it is so on every rank."""
        return self.largest(int(not so)) == 0

    def hand_out(self, outputs: Sequence[LossOutput] | None) -> list[LossOutput]:
        """The outputs that one rank of this replica computed, on each of its ranks; without gradient. None: another
        rank has them."""
        said = self.exchange(json.dumps(None if outputs is None else [_plain(output) for output in outputs]))
        own = [text for rank, text in enumerate(said) if self._replica_of[rank] == self.replica]
        (computed,) = [outputs for text in own if (outputs := json.loads(text)) is not None]
        return [_unplain(output) for output in computed]

    def together(self, work: Callable[[], Any], *failures: type[Exception]) -> list[Any]:
        """What each rank's work comes to, in plain JSON types, by rank.

        A failure of one of these kinds on any rank is raised on all of them, as one of the first kind: none waits in
        vain.
        """
        try:
            said = {"done": work()}
        except failures as error:
            said = {"error": str(error)}
        by_rank = [json.loads(text) for text in self.exchange(json.dumps(said))]
        for rank in by_rank:
            if "error" in rank:
                raise failures[0](rank["error"])
        return [rank["done"] for rank in by_rank]

    def from_main(self, find: Callable[[], Any]) -> Any:
        """What the main rank finds, in plain JSON types. What it refuses is raised on every rank, as RefusedByMain."""
        return self.together(lambda: find() if self.is_main else None, RefusedByMain, Refused)[0]

    def who_failed(self, failure: Exception) -> str | None:
        """Tell the others that this rank has failed. Where a connection to another one broke, which one, for people;
        None where the failure is this rank's own."""
        if self._store is None:
            return None
        try:
            own = not isinstance(failure, dist.DistError) and "gloo/transport" not in str(failure)
            self._store.set(f"failed/{self.rank}", f"{type(failure).__name__}: {failure}" if own else "")
            return None if own else self._last_words()
        except dist.DistError:
            return "the rank at which all meet was lost"

    def _last_words(self) -> str:
        """Who has failed first: those that say why, and those that say nothing any more."""
        assert self._store is not None
        silent, ends, told = set(range(self.world_size)), time.monotonic() + LAST_WORDS, []
        while silent and time.monotonic() < ends:
            for rank in [rank for rank in silent if self._store.check([f"failed/{rank}"])]:
                silent.remove(rank)
                if why := self._store.get(f"failed/{rank}").decode():
                    told.append(f"rank {rank} failed: {why}")
            time.sleep(0.05)
        told += [f"rank {rank} was lost: it, or its machine, ended without a word" for rank in sorted(silent)]
        return "; ".join(told) or f"the ranks lost one another, or one let the others wait for {PATIENCE}"

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()

    def peak_memory_bytes(self) -> int:
        """The most memory a rank has held: of the device, or of the process on a CPU; the largest over all ranks."""
        if self.device.type == "cuda":
            return self.largest(torch.cuda.max_memory_allocated(self.device))
        return self.largest(most_held())

    def _from_all(self, values: Tensor) -> list[Tensor]:
        values = values.to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(values)], device=self.device))
        # (longest of all,) on every rank, for all_gather wants one shape
        padded = torch.cat([values, values.new_zeros(max(int(size) for size in sizes) - len(values))])
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded)
        return [part[: int(size)].cpu() for part, size in zip(gathered, sizes, strict=True)]


def most_held() -> int:
    """The most memory that this process has held, in bytes. By itself getrusage also counts what the process held that
    started this one."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@contextmanager
def left_afterwards() -> Iterator[None]:
    """Leave the process group that is joined inside the block, whatever happens there; not one from before."""
    before, hook = dist.is_initialized(), sys.excepthook
    try:
        yield
    finally:
        sys.excepthook = hook  # torch's says before each line of a traceback which rank it is from, ever after
        if dist.is_initialized() and not before:
            dist.destroy_process_group()


def join_process_group(place: Place, backend: str) -> dist.Store | None:
    """Meet the other ranks, unless the caller has done so; the store at which they met. A rank that is alone opens no
    port. Raises Refused where not all come."""
    if dist.is_initialized():
        return None
    if place.world_size == 1 and place.port is None and "MASTER_ADDR" not in os.environ:
        store: dist.Store = dist.HashStore()
    elif place.port is not None:
        store = dist.TCPStore("127.0.0.1", place.port, is_master=False)
    else:
        try:
            store, _, _ = next(dist.rendezvous("env://", place.rank, place.world_size, timeout=TO_START))
        except dist.DistError as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            waited = f"{place.world_size} ranks were to meet at {where}, but not all came within {TO_START}"
            raise Refused(f"{waited}. See what each of them says. {error}") from error
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size, timeout=PATIENCE)
    return store


def _plain(output: LossOutput) -> list[Any]:
    """An output in JSON types; float64 goes through JSON without a loss."""
    return [
        float(output.loss.detach()),
        {name: float(value) for name, value in output.terms.items()},
        {name: value.tolist() for name, value in output.per_pair.items()},
    ]


def _unplain(plain: list[Any]) -> LossOutput:
    loss, terms, per_pair = plain
    return LossOutput(
        torch.tensor(loss, dtype=torch.float64),
        {name: torch.tensor(value, dtype=torch.float64) for name, value in terms.items()},
        {name: torch.tensor(value, dtype=torch.float64) for name, value in per_pair.items()},
    )
