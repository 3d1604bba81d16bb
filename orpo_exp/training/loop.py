"""The one training loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from orpo_exp.data.order import Order
from orpo_exp.data.tokenize import TokenizedData
from orpo_exp.losses import LamSchedule, Loss
from orpo_exp.plugins import Plugin
from orpo_exp.tracking import Trackers
from orpo_exp.training.evaluation import measured
from orpo_exp.training.metrics import Speed, reduce_outputs, refuse_non_finite
from orpo_exp.training.objectives import make_objective
from orpo_exp.training.pair_results import PairResults
from orpo_exp.training.reference import HELD_OUT, TEST, TRAIN, Reference
from orpo_exp.training.settings import TrainConfig
from orpo_exp.training.sharing import Sharing
from orpo_exp.training.stop import StopRequest
from orpo_exp.types import TokenizedPair


class Saves(Protocol):
    """Where a loop saves, and what it goes on from. Every method is called on all ranks."""

    def note(self, step: int, evaluation: Mapping[str, float]) -> bool:
        """Whether a step with this evaluation is to be saved because of it."""

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Save what the plugin holds, and the loop's state, after a step. Raises NotSaved."""

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Give the plugin what was saved; the loop's state."""


@dataclass
class Loop:
    """Everything the loop drives, and how far it has come.

    max_steps: optimizer steps in all. until: the one after which it evaluates, saves and leaves.
    learning_rate: that of a step, counted from 1. note_step: called after each one.
    weight: what the lambda schedule gave the latest step. eval_metrics: the latest evaluation.
    stopped_by: the number of the signal that made the loop leave early, the same on all ranks; 0 for none.
    note_pairs, note_test_pairs: called on all ranks with results pair by pair, of each evaluation and of the test.
    """

    train: TrainConfig
    plugin: Plugin
    sharing: Sharing
    loss: Loss
    lam_schedule: LamSchedule
    learning_rate: Callable[[int], float]
    data: TokenizedData
    order: Order
    trackers: Trackers
    reference: Reference | None
    max_steps: int
    until: int
    checkpoints: Saves
    stop: StopRequest
    note_step: Callable[[int], None]
    step: int = 0
    weight: float = 0.0
    speed: Speed = field(default_factory=Speed)
    eval_metrics: dict[str, float] = field(default_factory=dict)
    stopped_by: int = 0
    note_pairs: Callable[[PairResults], None] = lambda results: None
    note_test_pairs: Callable[[PairResults], None] = lambda results: None

    def run(self) -> None:
        """Train from `step` to `until`; save and leave between two steps when `stop` asks for it.

        Raises TrainingDiverged before an update that is not finite, and NotSaved.
        """
        if self.step == 0:
            self.weight = self.lam_schedule.weight(1)
            self.evaluate()
        with self.speed.running():
            while self.step < self.until and not self.stopped_by:
                self.step += 1
                metrics = self.train_step()
                self.note_step(self.step)
                best = False
                if self.due(self.train.log_every, at_end=True):
                    self.trackers.log(self.step, "train", metrics | self.speed.since_last())
                if self.due(self.train.eval_every, at_end=True):
                    self.evaluate()
                    best = self.checkpoints.note(self.step, self.eval_metrics)
                if self.step < self.max_steps:
                    self.stopped_by = self.stop.agreed(self.plugin.ranks)
                waits = self.step == self.until < self.max_steps
                if self.stopped_by or waits or best or self.due(self.train.save_every):
                    self.save()

    def due(self, every: int, at_end: bool = False) -> bool:
        """Whether something that happens every so many steps (0: never) happens at this one."""
        return (every > 0 and self.step % every == 0) or (at_end and self.step == self.until)

    def train_step(self) -> dict[str, float]:
        """One optimizer step on one global batch; its metrics."""
        pairs = self.data.completed(self.data.train(self.order.positions(self.step)), self.loss.needs)
        share = self.sharing.of(pairs)
        self.weight = self.lam_schedule.weight(self.step)
        lr = self.learning_rate(self.step)

        compared = self.reference.logps(TRAIN, share) if self.reference else None
        objective, known = make_objective(self.plugin, self.loss, share, compared, self.weight)
        # not all that was scored has a gradient
        computed = self.plugin.forward_backward(share.batches_for(self.loss.gradient_needs), objective)
        outputs = known or computed

        ranks = self.plugin.ranks
        metrics = reduce_outputs(ranks, outputs, share.counts)
        refuse_non_finite(self.step, metrics, ranks, outputs, share.pairs)
        norm = self.plugin.step(lr)
        metrics |= self.plugin.loss_scale.metrics() | ({} if norm is None else {"grad_norm": norm})
        refuse_non_finite(self.step, metrics, ranks, outputs, share.pairs)
        self.lam_schedule.update(metrics)
        self.speed.count(pairs)
        if self.reference:
            self.reference.after_step(self.step)
        return metrics | self.weight_metric | {"lr": lr}

    def evaluate(self) -> None:
        """Evaluate all held-out pairs and log the result."""
        if self.data.held_out:
            with self.speed.paused():
                self.eval_metrics, pairs = self._measured(HELD_OUT, self.data.held_out)
                self.trackers.log(self.step, "eval", self.eval_metrics)
                self.note_pairs(pairs)

    def test(self) -> dict[str, float]:
        """The same with the pairs of the test, for after training; none where there are none."""
        if not self.data.test:
            return {}
        metrics, pairs = self._measured(TEST, self.data.test)
        self.trackers.log(self.step, "test", metrics)
        self.note_test_pairs(pairs)
        return metrics

    def _measured(self, split: str, pairs: Sequence[TokenizedPair]) -> tuple[dict[str, float], PairResults]:
        share = self.sharing.of(self.data.completed(pairs, self.loss.needs))
        metrics, results = measured(self.plugin, self.loss, share, self.reference, split, self.weight, self.step)
        return metrics | self.weight_metric, results

    def save(self) -> None:
        """Write a checkpoint of this step."""
        with self.speed.paused():
            self.trackers.flush()
            state = {
                "step": self.step,
                "epochs": None if (per_epoch := self.order.steps_per_epoch) is None else self.step / per_epoch,
                "weight": self.weight,
                "lam_schedule": self.lam_schedule.state_dict(),
                "eval_metrics": self.eval_metrics,
                "speed": self.speed.state_dict(),
            }
            self.checkpoints.save(self.step, state)

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint of this run. The data need no position: their order is a function of the step."""
        state = self.checkpoints.load(checkpoint)
        self.step, self.weight, self.eval_metrics = state["step"], state["weight"], state["eval_metrics"]
        self.lam_schedule.load_state_dict(state["lam_schedule"])
        self.speed.load_state_dict(state["speed"])

    @property
    def weight_metric(self) -> dict[str, float]:
        """The weight that the schedule drives, where the loss has one; `lam` whatever its field is called."""
        return {"lam": self.weight} if self.loss.weight_field else {}
