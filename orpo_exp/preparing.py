"""What a run trains with: what it has read, what the plugin then holds, and the loop over both. A plan has the same."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orpo_exp.adapters import Adapter
from orpo_exp.data.order import Order
from orpo_exp.data.tokenize import TokenizedData
from orpo_exp.layouts import LAYOUTS
from orpo_exp.losses import LAM_SCHEDULES, LOSSES, Loss
from orpo_exp.models import CausalLM
from orpo_exp.optimizers import OPTIMIZERS, SCHEDULERS, OptimizerFactory
from orpo_exp.plugins import Plugin
from orpo_exp.runs.order import RunOrder, rung_step
from orpo_exp.runs.resuming import find_checkpoint
from orpo_exp.tracking import Trackers
from orpo_exp.training import Loop
from orpo_exp.training.layout import Used, checked, settle
from orpo_exp.training.loop import Saves
from orpo_exp.training.reference import REFERENCES, Reference
from orpo_exp.training.sharing import Sharing
from orpo_exp.training.stop import StopRequest
from orpo_exp.types import Builder


@dataclass(frozen=True)
class Read:
    """What a run has read before it holds anything on a device.

    policy: the model that is yet to be made; build: how, with its adapter; beginning: how to make the model that losses
    with a reference compare with. digest: a hexadecimal hash of where its
    weights come from, taken when it is asked for. steps: the order of the pairs; max_steps: how many there are.
    """

    policy: CausalLM
    adapter: Adapter
    build: Builder
    beginning: Builder
    digest: Callable[[], str]
    pairs: TokenizedData
    steps: Order
    max_steps: int


@dataclass(frozen=True)
class Ready:
    """What trains once the plugin holds the model. found: the checkpoint to go on from and its manifest, if any."""

    loss: Loss
    optimizer: OptimizerFactory
    used: Used
    sharing: Sharing
    reference: Reference | None
    found: tuple[str, dict[str, Any]] | None


def ready(plugin: Plugin, order: RunOrder, read: Read) -> Ready:
    """Settle how the work is laid out, and have the plugin build the models. Called on all ranks."""
    config, ranks = order.config, plugin.ranks
    loss = LOSSES.build(config.loss)
    optimizer = OPTIMIZERS.build(config.optimizer)
    found: tuple[str, dict[str, Any]] | None = ranks.from_main(lambda: find_checkpoint(order))
    used_before = Used.recorded(found[1] if found else None, config.choices["layout"])
    sample = read.pairs.train(read.steps.positions(1))
    layout = settle(config.layout, sample, read.policy.one_text_a_row, used_before)
    plugin.prepare(read.build, optimizer.make, config.train.max_grad_norm)
    if not used_before:
        layout = checked(layout, plugin, sample)
    used = Used(LAYOUTS.name(layout), used_before.micro_batch_tokens if used_before else plugin.micro_batch_tokens)
    most_tokens = config.train.micro_batch_tokens or used.micro_batch_tokens
    sharing = Sharing(layout, ranks, loss.needs, config.train.micro_batch_pairs, most_tokens)
    reference = REFERENCES.build(config.reference, plugin, sharing) if loss.needs_reference else None
    if reference and reference.of_trained:
        plugin.hold_beginning()
    elif reference and reference.beside_policy:
        plugin.hold_reference(read.beginning)
    plugin.seed(config.seed)  # after what draws weights
    return Ready(loss, optimizer, used, sharing, reference, found)


def loop_over(
    plugin: Plugin,
    order: RunOrder,
    read: Read,
    ready: Ready,
    trackers: Trackers,
    checkpoints: Saves,
    note_step: Callable[[int], None],
) -> Loop:
    """The loop, at its beginning."""
    config, loss, max_steps = order.config, ready.loss, read.max_steps
    until = max_steps if order.until is None else rung_step(order.until, max_steps)
    scheduler = SCHEDULERS.build(config.scheduler, max_steps)
    return Loop(
        train=config.train,
        plugin=plugin,
        sharing=ready.sharing,
        loss=loss,
        lam_schedule=LAM_SCHEDULES.build(config.lam_schedule, loss.weight, max_steps),
        learning_rate=lambda step: ready.optimizer.lr * scheduler.factor(step),
        data=read.pairs,
        order=read.steps,
        trackers=trackers,
        reference=ready.reference,
        max_steps=max_steps,
        until=until,
        checkpoints=checkpoints,
        stop=StopRequest(),
        note_step=note_step,
    )
