"""One run, as a straight list of steps."""

import copy
import dataclasses
import errno
import logging
import signal
import traceback
from pathlib import Path

from orpo_exp.config import Direction, TrainConfig, resolved
from orpo_exp.data import DATA
from orpo_exp.data.order import Order
from orpo_exp.data.tokenize import TokenizedData, prepare, training_texts
from orpo_exp.layouts import LAYOUTS
from orpo_exp.losses import LAM_SCHEDULES, LOSSES
from orpo_exp.models import MODELS, LoadedModel
from orpo_exp.models.base import parameter_count
from orpo_exp.optimizers import OPTIMIZERS, SCHEDULERS
from orpo_exp.plugins import PLUGINS, Place, Plugin
from orpo_exp.runs.folder import RunFolder, package_versions
from orpo_exp.runs.order import RunOrder
from orpo_exp.runs.resuming import find_checkpoint, has_work
from orpo_exp.tracking import TRACKERS, RunInfo, Trackers
from orpo_exp.tracking.jsonl import Jsonl
from orpo_exp.tracking.logs import setup_logging
from orpo_exp.training import Loop, TrainingDiverged, write_samples
from orpo_exp.training.checkpoints import Checkpoints, Keep, NotSaved, RefusedByMain, from_main
from orpo_exp.training.reference import REFERENCES

log = logging.getLogger(__name__)

COMPLETED, FAILED, REFUSED, STOPPED = 0, 1, 2, 128
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_rank(place: Place, order: RunOrder) -> int:
    """Run one rank of a run from where it stands to its end; the process's exit code.

    0 completed, 1 failed, 2 refused because of what the user gave, 128 + its number when stopped by a signal (130 for
    Ctrl-C). The main rank's result.json and log say the same, whatever the end was.
    """
    main = place.rank == 0
    setup_logging(None, main=main, rank=place.rank)
    trackers = Trackers([])
    plugin: Plugin | None = None
    folder: RunFolder | None = None
    status, error, code = "failed", None, FAILED
    try:
        plugin = PLUGINS.build(order.config.plugin, place)
        order = dataclasses.replace(order, folder=Path(plugin.exchange(str(order.folder))[0]))
        if not from_main(plugin, lambda: has_work(order)):
            log.info("this run has completed already: %s", order.folder)
            return COMPLETED
        if main:
            folder = RunFolder(order.folder)
            folder.begin(order.config, order.overrides, place.world_size)
        plugin.barrier()
        setup_logging(order.folder, main=main, rank=place.rank)
        signal_number = run(plugin, order, folder, trackers)
        status, code = ("interrupted", STOPPED + signal_number) if signal_number else ("completed", COMPLETED)
    except KeyboardInterrupt:
        status, error, code = "interrupted", "stopped by the user", STOPPED + signal.SIGINT
    except (TrainingDiverged, NotSaved) as told:
        error = str(told)
        log.error("%s", told)
    except ValueError as refused:
        error, code = str(refused), REFUSED
        alone = not main and not isinstance(refused, RefusedByMain)
        log.error("%s", refused, exc_info=alone)
        log.debug("where it happened", exc_info=True)
    except Exception as failure:
        error = "".join(traceback.format_exception(failure))
        if isinstance(failure, OSError) and failure.errno in FULL_DISK:
            log.error("the disk is full: %s. The last checkpoint is intact.", failure, exc_info=not main)
            log.debug("where it happened", exc_info=True)
        else:
            log.exception("the run failed")
    finally:
        if plugin:
            plugin.close()
    if folder:
        ended(folder, trackers, status, error)
    if main and code not in (COMPLETED, REFUSED):
        log.warning("To go on with this run: %s", order.resume_command)
    return code


def ended(folder: RunFolder, trackers: Trackers, status: str, error: str | None) -> None:
    """Say everywhere how the run ended. A result.json that cannot be written must not hide why."""
    try:
        folder.end(status, error)
    except OSError as failure:
        log.error("result.json could not be written: %s", failure)
    trackers.finish(folder.result)


def run(plugin: Plugin, order: RunOrder, folder: RunFolder | None, trackers: Trackers) -> int:
    """Load, go on where the last checkpoint stands, train, evaluate, save.

    Returns the number of the signal that ended it early, 0 for none.
    """
    config, train = order.config, order.config.train
    data = DATA.build(config.data).load(config.seed)
    loaded = MODELS.build(config.model).load(training_texts(data), config.seed)
    pairs = prepare(data, loaded.tokenizer, config.data.max_length, config.data.min_prompt_length)

    steps = Order(pairs.size, train.global_batch_size, config.seed)
    max_steps = total_steps(steps.steps_per_epoch, train.max_steps, train.epochs)
    loss = LOSSES.build(config.loss)
    optimizer = OPTIMIZERS.build(config.optimizer)
    parameters = loaded.model.parameters()
    layout = LAYOUTS.build(config.layout)
    reference = REFERENCES.build(config.reference, plugin, layout, loss.needs) if loss.needs_reference else None
    beside = copy.deepcopy(loaded.model) if reference and reference.beside_policy else None
    plugin.prepare(loaded.model, loaded.finish_logits, optimizer.make(parameters), train.max_grad_norm)
    plugin.seed(config.seed)
    if beside:
        plugin.hold_reference(beside)

    about = {
        "plugin": type(plugin).__name__,
        "world_size": plugin.world_size,
        "versions": package_versions(),
        "settings": config.numeric(),
        "data": pairs.fingerprint(),
    }
    checkpoint, resumed_from = from_main(plugin, lambda: find_checkpoint(order, about))
    if folder:
        folder.write(total_steps=max_steps)
        trackers.trackers += [Jsonl(), *(TRACKERS.build(tracker) for tracker in config.tracker.values())]
        trackers.start(RunInfo(order.folder, order.experiment, resolved(config), max_steps, resumed_from))
    report(order, loaded, pairs, plugin.world_size)

    if reference:
        seen = max_steps * train.global_batch_size if pairs.size is None else pairs.size
        reference.begin(pairs, seen, train.micro_batch_size)
    moves = reference is not None and reference.moves
    loop = Loop(
        plugin=plugin,
        layout=layout,
        loss=loss,
        lam_schedule=LAM_SCHEDULES.build(config.lam_schedule, loss.weight, max_steps),
        scheduler=SCHEDULERS.build(config.scheduler, max_steps),
        data=pairs,
        order=steps,
        trackers=trackers,
        reference=reference,
        lr=optimizer.lr,
        max_steps=max_steps,
        micro_batch_size=train.micro_batch_size,
        eval_every=train.eval_every,
        log_every=train.log_every,
        save_every=train.save_every,
        checkpoints=Checkpoints(order.folder / "checkpoints", plugin, about, keep(train), moves),
        heartbeat=folder.heartbeat if folder else lambda step: None,
    )
    before = answers(plugin, loaded, pairs, train.samples, train.sample_tokens)
    if checkpoint:
        loop.resume(Path(checkpoint))
        log.info("resumed at step %d of %d, from %s", loop.step, max_steps, checkpoint)
    with loop.stop.listening():  # to the end: a launcher's own handlers would cut into the writing
        loop.run()
        memory = plugin.peak_memory_bytes()
        if folder:
            folder.write(steps=loop.step, eval=loop.eval_metrics, peak_memory_bytes=memory, **loop.speed.overall())
        if loop.stopped_by:
            name = signal.Signals(loop.stopped_by).name
            log.warning("Stopped by %s after step %d of %d; everything is saved.", name, loop.step, max_steps)
            return loop.stopped_by
        after = answers(plugin, loaded, pairs, train.samples, train.sample_tokens)
        plugin.save_weights(order.folder / "model")
        if folder:
            loaded.tokenizer.save_pretrained(order.folder / "model")
            answered = {"before training": before, "after training": after}
            write_samples(order.folder / "samples.md", pairs.texts[: train.samples], answered)
            draw_plots(order.folder)
    return 0


def keep(train: TrainConfig) -> Keep:
    """Which checkpoints the settings keep."""
    sign = 1.0 if train.best_direction is Direction.max else -1.0
    return Keep(train.keep_last, train.keep_best, train.best_metric, sign)


def total_steps(steps_per_epoch: int | None, max_steps: int | None, epochs: float | None) -> int:
    """Optimizer steps of a run: max_steps where it is given, else as many as the epochs hold."""
    if max_steps is not None:
        return max_steps
    assert epochs is not None  # else refused by the configuration
    assert steps_per_epoch is not None
    return max(1, round(epochs * steps_per_epoch))


def answers(plugin: Plugin, loaded: LoadedModel, pairs: TokenizedData, count: int, max_new_tokens: int) -> list[str]:
    """Greedy answers to the first held-out prompts, as text."""
    prompts = [pair.prompt_ids for pair in pairs.held_out[:count]]
    return [
        loaded.tokenizer.decode(ids) for ids in plugin.generate(prompts, max_new_tokens, loaded.tokenizer.eos_token_id)
    ]


def report(order: RunOrder, loaded: LoadedModel, pairs: TokenizedData, ranks: int) -> None:
    """Tell the user what was found: rows, skipped ones by reason, the model's size."""
    size = "endless" if pairs.size is None else f"{pairs.size:,}"
    log.info("data: %s training pairs, %d held out, %d truncated", size, len(pairs.held_out), pairs.truncated)
    for reason, rows in pairs.skipped.items():
        shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        log.warning("skipped %d rows: %s (rows %s)", len(rows), reason, shown)
    if loaded.tokenizer.chat_template is None and any(not isinstance(pair.prompt, str) for pair in pairs.texts):
        log.info("the tokenizer has no chat template: turns are written as `User: ...`, `Assistant: ...`")
    size = f"{parameter_count(loaded.model):,} parameters"
    log.info("model: %s, %s, %d ranks", type(loaded.model).__name__, size, ranks)
    if order.config.model.dropout > 0:
        log.warning("model.dropout is above 0: the loss now depends on how the work is split")


def draw_plots(folder: Path) -> None:
    """Draw the curves; a picture that cannot be drawn ends no run."""
    from orpo_exp.tracking.plots import plot_run

    try:
        plot_run(folder)
    except Exception as error:
        log.warning("the plots could not be drawn: %s: %s", type(error).__name__, error)
