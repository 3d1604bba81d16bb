"""The one training loop."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from orpo_exp.data.order import Order
from orpo_exp.data.tokenize import TokenizedData, with_mismatched
from orpo_exp.layouts import Layout
from orpo_exp.losses import LamSchedule, Loss
from orpo_exp.optimizers import Scheduler
from orpo_exp.plugins import Plugin
from orpo_exp.tracking import Trackers
from orpo_exp.training.checkpoints import Checkpoints
from orpo_exp.training.evaluation import evaluate
from orpo_exp.training.metrics import Speed, reduce_outputs
from orpo_exp.training.objectives import make_objective
from orpo_exp.training.reference import TRAIN, Reference
from orpo_exp.training.sharing import share
from orpo_exp.training.stop import StopRequest
from orpo_exp.types import Batch, Counts, LossOutput, Need, TokenizedPair

log = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """A loss or gradient that is not finite; the weights are those before the step."""


@dataclass
class Loop:
    """Everything the loop drives, and how far it has come.

    max_steps: optimizer steps in all. lr: the peak learning rate. heartbeat: called with the step after each one.
    weight: what the lambda schedule gave the latest step. eval_metrics: the latest evaluation.
    stopped_by: the number of the signal that made the loop leave early, the same on all ranks; 0 for none.
    """

    plugin: Plugin
    layout: Layout
    loss: Loss
    lam_schedule: LamSchedule
    scheduler: Scheduler
    data: TokenizedData
    order: Order
    trackers: Trackers
    reference: Reference | None
    lr: float
    max_steps: int
    micro_batch_size: int
    eval_every: int
    log_every: int
    save_every: int
    checkpoints: Checkpoints
    heartbeat: Callable[[int], None]
    step: int = 0
    weight: float = 0.0
    speed: Speed = field(default_factory=Speed)
    stop: StopRequest = field(default_factory=StopRequest)
    eval_metrics: dict[str, float] = field(default_factory=dict)
    stopped_by: int = 0

    def run(self) -> None:
        """Train from `step` to `max_steps`; save and leave between two steps when `stop` asks for it.

        Raises TrainingDiverged before an update that is not finite, and NotSaved.
        """
        if self.step == 0:
            self.weight = self.lam_schedule.weight(1)
            self.evaluate()
        self.checkpoints.check_metric(self.eval_metrics)
        self.speed.since_last()
        while self.step < self.max_steps and not self.stopped_by:
            self.step += 1
            metrics = self.train_step()
            asked_to_stop = metrics.pop("stop") > 0 and self.step < self.max_steps
            best = False
            if self.due(self.log_every, at_end=True):
                self.trackers.log(self.step, "train", metrics | self.speed.since_last())
            if self.due(self.eval_every, at_end=True):
                self.evaluate()
                best = self.checkpoints.note(self.step, self.eval_metrics)
            if asked_to_stop or best or self.due(self.save_every):
                self.save()
            self.heartbeat(self.step)
            if asked_to_stop:
                self.stopped_by = max(int(signal) for signal in self.plugin.exchange(str(self.stop.signal)))

    def due(self, every: int, at_end: bool = False) -> bool:
        """Whether something that happens every so many steps (0: never) happens at this one."""
        return (every > 0 and self.step % every == 0) or (at_end and self.step == self.max_steps)

    def train_step(self) -> dict[str, float]:
        """One optimizer step on one global batch; its metrics."""
        pairs = self.completed(self.data.train(self.order.positions(self.step)))
        counts = Counts.of(pairs)
        shares = share(pairs, self.micro_batch_size, self.plugin.data_parallel_size, self.plugin.data_parallel_rank)
        micro_batches = [self.layout.collate(part, self.loss.needs) for part in shares]

        self.weight = weight = self.lam_schedule.weight(self.step)
        lr = self.lr * self.scheduler.factor(self.step)
        own = [pair for part in shares for pair in part]
        compared = self.reference.logps(TRAIN, own, micro_batches) if self.reference else None
        objective, outputs = make_objective(self.plugin, self.loss, micro_batches, compared, weight, counts)
        if self.loss.gradient_needs != self.loss.needs:  # not all that was scored has a gradient
            micro_batches = [self.layout.collate(part, self.loss.gradient_needs) for part in shares]
        self.plugin.forward_backward(micro_batches, objective)

        metrics = reduce_outputs(self.plugin, outputs, counts, stop=self.stop.signal > 0)
        self.refuse_non_finite(metrics, outputs, micro_batches)
        metrics["grad_norm"] = self.plugin.step(lr)
        self.refuse_non_finite(metrics, outputs, micro_batches)
        self.lam_schedule.update(metrics)
        self.speed.count(pairs)
        if self.reference:
            self.reference.after_step(self.step)
        return metrics | self.weight_metric(weight) | {"lr": lr}

    def evaluate(self) -> None:
        """Evaluate all held-out pairs and log the result."""
        with self.speed.paused():
            self.eval_metrics = evaluate(
                self.plugin,
                self.layout,
                self.loss,
                self.completed(self.data.held_out),
                self.micro_batch_size,
                self.weight,
                self.reference,
            ) | self.weight_metric(self.weight)
            self.trackers.log(self.step, "eval", self.eval_metrics)

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

    def completed(self, pairs: list[TokenizedPair]) -> list[TokenizedPair]:
        """The pairs with what the loss needs from beyond each of them."""
        return with_mismatched(pairs, self.data.max_length) if Need.mismatched in self.loss.needs else pairs

    def weight_metric(self, weight: float) -> dict[str, float]:
        """The weight that the schedule drives, where the loss has one; `lam` whatever its field is called."""
        return {"lam": weight} if self.loss.weight_field else {}

    def refuse_non_finite(
        self, metrics: Mapping[str, float], outputs: Sequence[LossOutput], micro_batches: Sequence[Batch]
    ) -> None:
        """Raise TrainingDiverged, naming step, terms and pairs, where a metric is not finite; the same on all ranks."""
        bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if not bad:
            return
        rows = [row for batch in micro_batches for row in batch.rows]
        per_pair = [torch.cat([output.per_pair[name] for output in outputs]) for name in outputs[0].per_pair]
        broken = [
            row for i, row in enumerate(rows) if not all(math.isfinite(v[i]) for v in per_pair if len(v) == len(rows))
        ]
        everywhere = torch.cat(self.plugin.gather(torch.tensor(broken, dtype=torch.int64))).tolist()
        if not everywhere:  # only the gradient is broken: any pair of the batch may be why
            everywhere = torch.cat(self.plugin.gather(torch.tensor(rows, dtype=torch.int64))).tolist()
        shown = ", ".join(str(row) for row in sorted(everywhere)[:20]) + (", ..." if len(everywhere) > 20 else "")
        terms = ", ".join(f"{name} = {value}" for name, value in bad.items())
        raise TrainingDiverged(
            f"step {self.step} is not finite: {terms}; pairs (rows of the data): {shown}. "
            f"The weights were not updated. Look at these rows, lower optimizer.lr, or set train.max_grad_norm."
        )
