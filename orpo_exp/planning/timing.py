"""How long a run takes, from a few of its own steps. No weight moves in them: their learning rate is 0."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from orpo_exp.planning.counts import Counted, computed, evaluated
from orpo_exp.planning.figures import Time
from orpo_exp.plugins import Plugin
from orpo_exp.preparing import Read, Ready, loop_over
from orpo_exp.runs.order import RunOrder
from orpo_exp.tracking import Trackers
from orpo_exp.tracking.jsonl import FILE
from orpo_exp.training import Loop, answers
from orpo_exp.training.checkpoints import fingerprint
from orpo_exp.training.reference import Reference
from orpo_exp.training.sharing import Share
from orpo_exp.types import PairLogps

SECONDS = 10.0  # that the steps may take, about; but for
FEWEST, MOST = 3, 20  # steps
STEPS_OF_EVALUATION = 3  # as long as so many steps are computed for is evaluated at most
PROBE = 2**25  # bytes


class Beforehand(Reference):
    """In place of a reference that scores all pairs before training: it scores them with the clock stopped."""

    loop: Loop

    @override
    def logps(self, split: str, share: Share) -> PairLogps:
        began = time.perf_counter()
        with self.loop.speed.paused():
            scored = self.plugin.score(share.batches)
        self.seconds, self.positions = time.perf_counter() - began, computed(self.sharing.layout, share.parts)
        return scored


def timed(
    plugin: Plugin, order: RunOrder, read: Read, ready: Ready, counted: Counted, start: float, files: tuple[int, int]
) -> Time:
    """Run some steps and an evaluation, or a part of it. start: seconds that it took to come here. files: the bytes of
    a checkpoint, and of the model as it is saved."""
    ranks, sharing = plugin.ranks, ready.sharing
    beforehand = None
    if ready.reference and ready.reference.per_pair:
        beforehand = Beforehand(ready.reference.config, plugin, sharing)
        ready = replace(ready, reference=beforehand)
    loop = loop_over(plugin, order, read, ready, Trackers([]), _Unsaved(), lambda step: None)
    loop.learning_rate = lambda step: 0.0
    if beforehand:
        beforehand.loop = loop

    logged = []

    def step(number: int) -> float:
        loop.step, before = number, loop.speed.seconds
        with loop.speed.running():
            logged.append({"step": number, "split": "train", **loop.train_step()})
        return loop.speed.seconds - before

    # which steps are timed the main rank says: to each, others of its own pairs are the largest
    largest, *typical = json.loads(ranks.exchange(json.dumps([counted.largest_step, *counted.typical(MOST)]))[0])
    first = step(largest)  # which warms up
    numbers = typical[: ranks.largest(max(FEWEST, round(SECONDS / max(first, 1e-3))))]
    took = sum(step(number) for number in numbers)
    per_position = took / sum(counted.costs[number - 1] for number in numbers)
    start += max(0.0, first - per_position * counted.costs[largest - 1])  # by which a run's first step, too, is longer

    whole = computed(sharing.layout, evaluated(read, sharing).parts)
    every = ranks.largest(max(1, round(whole / (STEPS_OF_EVALUATION * counted.cost))))
    part = replace(read.pairs, held_out=read.pairs.held_out[::every])
    loop.data = part
    began = time.perf_counter()
    loop.evaluate()
    evaluation = time.perf_counter() - began
    if beforehand:
        evaluation -= beforehand.seconds
        pairs = read.max_steps * order.config.train.global_batch_size if read.pairs.size is None else read.pairs.size
        scored = pairs / order.config.train.global_batch_size * counted.cost + whole
        start += scored * beforehand.seconds / max(1, beforehand.positions)
    scale = whole / max(1, computed(sharing.layout, sharing.of(part.held_out).parts))

    began = time.perf_counter()
    answers(plugin, read.policy.tokenizer, read.pairs, order.config.train)
    answered = time.perf_counter() - began
    return Time(
        start=start + answered,
        step=per_position * counted.cost,
        evaluation=evaluation * scale,
        checkpoint=written(order.folder, files[0]),
        end=answered + written(order.folder, files[1]) + (drawn(logged) if ranks.is_main else 0.0),
        steps=len(numbers),
    )


def drawn(records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds to draw a run's plots: of a few records, in a folder that is gone afterwards."""
    from orpo_exp.tracking.plots import plot_run

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
        began = time.perf_counter()
        plot_run(Path(folder))
        return time.perf_counter() - began


def written(folder: Path, size: int) -> float:
    """Seconds to write so many bytes, and to take their hash, where a folder is or will be: told by a smaller file that
    has no name and is gone at once."""
    there = next(of for of in (folder.absolute(), *folder.absolute().parents) if of.is_dir())
    began = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\1" * PROBE)
            file.flush()
            fingerprint(Path(f"/proc/self/fd/{file.fileno()}"))
    except OSError:  # where a run, too, could not be written
        return 0.0
    return (time.perf_counter() - began) * size / PROBE


class _Unsaved:
    """A loop that is never run saves nothing."""

    def note(self, step: int, evaluation: object) -> bool:
        raise NotImplementedError

    def save(self, step: int, state: object) -> None:
        raise NotImplementedError

    def load(self, checkpoint: Path) -> dict[str, object]:
        raise NotImplementedError
