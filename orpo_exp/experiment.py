"""One run, as a straight list of steps."""

import copy
import dataclasses
import logging
import shlex
import traceback
from pathlib import Path

import torch

from orpo_exp.config import resolved
from orpo_exp.data import DATA
from orpo_exp.data.order import Order
from orpo_exp.data.tokenize import TokenizedData, prepare, training_texts
from orpo_exp.layouts import LAYOUTS
from orpo_exp.losses import LAM_SCHEDULES, LOSSES
from orpo_exp.models import MODELS, LoadedModel
from orpo_exp.models.base import parameter_count
from orpo_exp.optimizers import OPTIMIZERS, SCHEDULERS
from orpo_exp.plugins import PLUGINS, Place, Plugin
from orpo_exp.run_folder import RunFolder, RunOrder
from orpo_exp.tracking import TRACKERS, RunInfo, Trackers
from orpo_exp.tracking.console import setup_logging
from orpo_exp.tracking.jsonl import Jsonl
from orpo_exp.training import Loop, TrainingDiverged, write_samples
from orpo_exp.training.reference import REFERENCES

log = logging.getLogger(__name__)

COMPLETED, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def run_rank(place: Place, order: RunOrder) -> int:
    """Run one rank of a run from start to end; the process's exit code.

    0 completed, 1 failed, 2 refused because of what the user gave, 130 interrupted. The main rank's result.json and
    log say the same, whatever the end was.
    """
    main = place.rank == 0
    setup_logging(None, main=main, rank=place.rank)
    trackers = Trackers([])
    plugin: Plugin | None = None
    folder: RunFolder | None = None
    status, error, code = "failed", None, FAILED
    try:
        plugin = PLUGINS.build(order.config.plugin, place)
        order = dataclasses.replace(order, folder=agreed(plugin, order.folder))
        if main:
            folder = RunFolder(order.folder)
            folder.begin(order.config, order.overrides, place.world_size)
        plugin.barrier()
        setup_logging(order.folder, main=main, rank=place.rank)
        interrupted = run(plugin, order, folder, trackers)
        status, code = ("interrupted", INTERRUPTED) if interrupted else ("completed", COMPLETED)
    except KeyboardInterrupt:
        status, error, code = "interrupted", "stopped by the user", INTERRUPTED
    except TrainingDiverged as diverged:
        error = str(diverged)
        log.error("%s", diverged)
    except ValueError as refused:
        error, code = str(refused), REFUSED
        log.error("%s", refused)
        log.debug("where it happened", exc_info=True)
    except Exception as failure:
        error = "".join(traceback.format_exception(failure))
        log.exception("the run failed")
    finally:
        if plugin:
            plugin.close()
    if folder:
        folder.end(status, error)
        trackers.finish(folder.result)
    return code


def run(plugin: Plugin, order: RunOrder, folder: RunFolder | None, trackers: Trackers) -> bool:
    """Load, train, evaluate, save. True where a signal ended it early."""
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
    if beside:
        plugin.hold_reference(beside)

    if folder:
        trackers.trackers += [Jsonl(), *(TRACKERS.build(tracker) for tracker in config.tracker.values())]
        trackers.start(RunInfo(order.folder, order.experiment, resolved(config), max_steps))
    report(order, loaded, pairs, plugin.world_size)

    if reference:
        seen = max_steps * train.global_batch_size if pairs.size is None else pairs.size
        reference.begin(pairs, seen, train.micro_batch_size)
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
        heartbeat=folder.heartbeat if folder else lambda step: None,
    )
    before = answers(plugin, loaded, pairs, train.samples, train.sample_tokens)
    loop.run()
    after = answers(plugin, loaded, pairs, train.samples, train.sample_tokens)

    memory = plugin.peak_memory_bytes()
    plugin.save_weights(order.folder / "model")
    if folder:
        loaded.tokenizer.save_pretrained(order.folder / "model")
        write_samples(
            order.folder / "samples.md",
            pairs.texts[: train.samples],
            {"before training": before, "after training": after},
        )
        draw_plots(order.folder)
        folder.write(steps=loop.step, eval=loop.eval_metrics, peak_memory_bytes=memory, **loop.speed.overall())
    if loop.interrupted:
        log.warning("Stopped after step %d of %d. To start anew: %s", loop.step, max_steps, command(order))
    return loop.interrupted


def agreed(plugin: Plugin, folder: Path) -> Path:
    """The main rank's folder. Ranks that torchrun starts compose by themselves, each with a time of its own."""
    name = torch.frombuffer(bytearray(str(folder), "utf-8"), dtype=torch.uint8)
    return Path(bytes(plugin.gather(name)[0].tolist()).decode("utf-8"))


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


def command(order: RunOrder) -> str:
    """The command line that asked for this run."""
    return shlex.join(["python", "-m", "orpo_exp", *order.overrides])
