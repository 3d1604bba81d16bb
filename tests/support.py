"""What several tests share."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from orpo_exp.composition import check, compose
from orpo_exp.plugins import Place, start_ranks
from orpo_exp.runs.order import RunOrder
from orpo_exp.types import TokenizedPair, TokenLogps

WORDS = ("red", "blue", "green", "tiny", "house", "walks", "sings", "over", "the")


def uneven_rows(count: int) -> list[dict[str, str]]:
    """Preference rows whose prompts and answers are between one and some twenty words long."""
    rng = random.Random(1)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))

    return [
        {"prompt": f"{i} {words(12)}\n", "chosen": f"{words(9)} {i}", "rejected": f"{words(15)} no {i}"}
        for i in range(count)
    ]


def span(*pairs: Sequence[float]) -> TokenLogps:
    """TokenLogps of hand-written log-probabilities, one sequence per pair, in float64 so that nothing is rounded."""
    values = torch.tensor([value for pair in pairs for value in pair], dtype=torch.float64, requires_grad=True)
    return TokenLogps(values, torch.tensor([len(pair) for pair in pairs], dtype=torch.int64))


def pair(row: int, prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> TokenizedPair:
    """A tokenized pair from lists of ids."""
    return TokenizedPair(row, *(torch.tensor(ids, dtype=torch.int32) for ids in (prompt, chosen, rejected)))


def random_pairs(count: int, vocabulary: int, seed: int = 0) -> list[TokenizedPair]:
    """Tokenized pairs of uneven lengths, answers from one token on."""
    rng = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(rng.randint(least, most))]

    return [pair(row, ids(1, 12), ids(1, 9), ids(1, 20)) for row in range(count)]


RATES = ("time", "pairs_per_second", "tokens_per_second")


def numbers(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl line by line, as it stands, without times and rates: what must be equal bit for bit."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in RATES} for line in lines]


def start_run(
    cwd: Path, *arguments: str, launcher: Sequence[str] = (), environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, or by the modules of a launcher, e.g. torchrun's."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | (environment or {})
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "orpo_exp", *arguments],
        cwd=cwd, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def wait_for_end(process: subprocess.Popen[str], code: int = 0, timeout: float = 300) -> str:
    """The output of a process that is to end with this exit code."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            kill_tree(process)
    assert process.returncode == code, output
    return output


def killed_at(step: int, process: subprocess.Popen[str], folder: Path, timeout: float = 300) -> None:
    """SIGKILL a run and all its ranks as soon as a step is logged."""
    deadline = time.monotonic() + timeout
    metrics = folder / "metrics.jsonl"
    try:
        while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.005)
    finally:
        kill_tree(process)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL a process and all its children at once, the children first."""
    pids = [*children(process.pid), process.pid]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def order_of(*overrides: str) -> RunOrder:
    """A command line, composed and checked."""
    return check(compose(list(overrides), None), list(overrides))


def train_all(ranks: int, micro_batch_size: int, orders: Mapping[str, RunOrder], folder: Path) -> None:
    """Train each order into folder/<name>, all in the same processes, for starting some takes seconds."""
    split = []
    for name, order in orders.items():
        train = replace(order.config.train, micro_batch_size=micro_batch_size)
        split.append(replace(order, config=replace(order.config, train=train), folder=folder / name))
    assert start_ranks(ranks, run_all, split) == 0


def main_rank_leaves(place: Place) -> int:
    """As on a second Ctrl-C, while the other rank waits for this one where no signal reaches it."""
    if place.rank == 0:
        return 128 + signal.SIGINT
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    return 0


def run_without_room(place: Place, order: RunOrder) -> int:
    """A run whose second rank cannot write its part of a checkpoint."""
    from orpo_exp.experiment import run_rank
    from orpo_exp.plugins.ddp import DDP

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if place.rank == 1:
        DDP.save = full
    return run_rank(place, order)


def run_all(place: Place, orders: Sequence[RunOrder], again: Sequence[tuple[RunOrder, int]] = ()) -> int:
    """This rank of one run after another, without plots, all in one process group; the worst exit code.

    again: those that are then cut back to the checkpoint of a step, as if killed after it, and go on.
    """
    from orpo_exp import experiment
    from orpo_exp.plugins.ranks import join_process_group

    experiment.draw_plots = lambda folder: None
    join_process_group(place, "gloo")  # to leave and join again within a process hangs now and then
    worst = max(experiment.run_rank(place, order) for order in orders)
    for order, step in again:
        if place.rank == 0:
            cut_back(order.folder, step)
        dist.barrier()
        worst = max(worst, experiment.run_rank(place, order))
    dist.destroy_process_group()
    return worst


def cut_back(folder: Path, step: int) -> None:
    """Make of a completed run one that was killed after the checkpoint of a step; its copy `<name> whole` stays."""
    shutil.copytree(folder, folder.with_name(f"{folder.name} whole"), symlinks=True)
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(folder / "model")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"status": "failed"}))


def ranks_talk(place: Place) -> int:
    """Four ranks that are two replicas: each replica is heard once, what decides is agreed on by all."""
    from orpo_exp.plugins import Ranks
    from orpo_exp.schema import Refused
    from orpo_exp.types import LossOutput

    ranks = Ranks(place, torch.device("cpu"), replica_of=[0, 0, 1, 1])
    number, replica = float(place.rank + 1), place.rank // 2
    assert (ranks.replica, ranks.replicas) == (replica, 2)
    assert ranks.sum(torch.tensor([number], dtype=torch.float64)).tolist() == [1.0 + 3.0]
    gathered = ranks.gather(torch.full((place.rank + 1,), place.rank))
    assert [part.tolist() for part in gathered] == [[0], [2, 2, 2]]
    assert ranks.exchange(f"rank {place.rank}") == [f"rank {rank}" for rank in range(4)]
    assert ranks.largest(place.rank) == 3
    assert (ranks.everywhere(place.rank < 4), ranks.everywhere(place.rank != 3)) == (True, False)

    # the second rank of each replica has computed something
    third = torch.tensor(number / 3, dtype=torch.float64)
    own = [LossOutput(third, {"nll": third}, {"margin": third.repeat(2)})] if place.rank % 2 else None
    (output,) = ranks.hand_out(own)
    expected = 2 * (replica + 1) / 3
    assert (float(output.loss), float(output.terms["nll"]), output.per_pair["margin"].tolist()) == (
        expected, expected, [expected] * 2,
    )  # fmt: skip

    def refuse() -> None:
        raise Refused("not this")

    with pytest.raises(Refused, match="not this"):
        ranks.from_main(refuse)
    ranks.barrier()
    dist.destroy_process_group()
    return 0
