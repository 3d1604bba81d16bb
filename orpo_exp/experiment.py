"""One run, as a straight list of steps."""

import dataclasses
import errno
import logging
import signal
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from orpo_exp.adapters import ADAPTERS, Adapter
from orpo_exp.config import RunConfig, check_plugin, resolved
from orpo_exp.data import DATA, SourceData
from orpo_exp.data.order import Order
from orpo_exp.data.tokenize import TokenizedData, prepare, training_texts
from orpo_exp.models import MODELS, CausalLM, ModelSource
from orpo_exp.optimizers import OptimizerFactory
from orpo_exp.pair_tables import TEST_PAIRS, TEST_TEXTS
from orpo_exp.plugins import PLUGINS, Place, Plugin, Which
from orpo_exp.plugins.memory import told
from orpo_exp.plugins.precision import arithmetic_as_before
from orpo_exp.plugins.ranks import RefusedByMain, left_afterwards
from orpo_exp.preparing import Read, loop_over, ready
from orpo_exp.runs.folder import RunFolder
from orpo_exp.runs.order import RunOrder, rung_step
from orpo_exp.runs.resuming import check_checkpoint, has_work, manifest
from orpo_exp.schema import Refused
from orpo_exp.tracking import TRACKERS, RunInfo, Trackers
from orpo_exp.tracking.jsonl import Jsonl
from orpo_exp.tracking.logs import Messages
from orpo_exp.training import TrainingDiverged, answers, write_samples
from orpo_exp.training.checkpoints import Checkpoints, Keep, NotSaved
from orpo_exp.training.pair_results import PairFiles
from orpo_exp.training.stop import Stopped, Waiting
from orpo_exp.types import Builder

log = logging.getLogger(__name__)

COMPLETED, FAILED, REFUSED, STOPPED = 0, 1, 2, 128
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class RunResult:
    """How a run ended on this rank. status: completed, waiting, failed or interrupted, with the reason as `error`.

    code: 0 completed or waiting, 1 failed, 2 refused because of what the user gave, 128 + its number when stopped by a
    signal (130 for Ctrl-C). metrics: the final held-out ones. test: the same of the test pairs.
    """

    folder: Path
    status: str = "failed"
    metrics: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    code: int = FAILED


def run_rank(place: Place, order: RunOrder) -> int:
    """Run one rank and return the process's exit code; see `run`."""
    return run(order, place).code


def run(order: RunOrder, place: Place | None = None) -> RunResult:
    """Run one rank of a run, by default the only one, from where it stands to its end.

    Nothing is raised but by a second Ctrl-C while the end is written: the result, the main rank's result.json and the
    log say how it ended. Handlers of signals and messages and the process group are put back as they were.
    """
    place = place or Place()
    main, result = place.rank == 0, RunResult(order.folder)
    trackers = Trackers([])
    folder: RunFolder | None = None
    plugin: Plugin | None = None
    with Messages(place.rank) as messages, left_afterwards(), arithmetic_as_before(), ExitStack() as to_the_end:
        try:
            check_plugin(order.config, place.world_size, starting=True)
            plugin = PLUGINS.build(order.config.plugin, place)
            result.folder = Path(plugin.ranks.exchange(str(order.folder))[0])
            order = dataclasses.replace(order, folder=result.folder)
            if not plugin.ranks.from_main(lambda: has_work(order)):
                log.info("this run has completed already: %s", order.folder)
            else:
                if main:
                    folder = RunFolder(order.folder)
                    folder.begin(order, place.world_size)
                plugin.ranks.barrier()
                messages.keep(order.folder)
                train(plugin, order, folder, trackers, result, to_the_end)
            result.status, result.code = "completed", COMPLETED
        except KeyboardInterrupt:
            result.status, result.error, result.code = "interrupted", "stopped by the user", STOPPED + signal.SIGINT
        except Waiting:
            result.status, result.code = "waiting", COMPLETED
        except Stopped as stopped:
            result.status, result.code = "interrupted", STOPPED + stopped.number
        except (TrainingDiverged, NotSaved) as failure:
            result.error = str(failure)
            log.error("%s", failure)
        except Refused as refused:
            result.error, result.code = str(refused), REFUSED
            alone = not main and not isinstance(refused, RefusedByMain)
            log.error("%s", refused, exc_info=alone)
            log.debug("where it happened", exc_info=True)
        except Exception as failure:
            others = plugin.ranks.who_failed(failure) if plugin else None
            result.error = others or "".join(traceback.format_exception(failure))
            if isinstance(failure, OSError) and failure.errno in FULL_DISK:
                log.error("the disk is full: %s. The last checkpoint is intact.", failure, exc_info=not main)
                log.debug("where it happened", exc_info=True)
            elif others:
                log.error("%s", others)
                log.debug("where it was noticed", exc_info=True)
            else:
                log.exception("the run failed")
        # written down before the ranks part, in which one can hang
        if folder:
            try:
                folder.end(result.status, result.error)
            except OSError as failure:  # which must not hide how the run ended
                log.error("result.json could not be written: %s", failure)
            draw_page(order.folder)
            trackers.finish(folder.result)
        if main and result.code not in (COMPLETED, REFUSED):
            log.warning("To go on with this run: %s", order.resume_command)
    return result


def read(order: RunOrder) -> Read:
    """Data, tokenizer, and how to make the model: everything that needs no device."""
    config = order.config
    data = order.data or DATA.build(config.data).load(config.seed)
    source, adapter = MODELS.build(config.model), ADAPTERS.build(config.adapter)
    policy, build = beginning(config, source, adapter, data)
    pairs = prepare(data, policy.tokenizer, config.data)
    pairs = pairs.within(source.positions())
    steps = Order(pairs.size, config.train.global_batch_size, config.seed)
    max_steps = config.train.total_steps(steps.steps_per_epoch)
    return Read(
        policy, adapter, build, build, lambda: source.digest(config.seed) + adapter.digest(), pairs, steps, max_steps
    )


def beginning(config: RunConfig, source: ModelSource, adapter: Adapter, data: SourceData) -> tuple[CausalLM, Builder]:
    """The model that a run with this configuration begins with, and how to make it with its adapter."""
    policy = source.prepare(training_texts(data), config.seed)
    return policy, adapter.on(policy.build, source.found_at, config.seed)


def train(
    plugin: Plugin,
    order: RunOrder,
    folder: RunFolder | None,
    trackers: Trackers,
    result: RunResult,
    to_the_end: ExitStack,
) -> None:
    """Load, go on where the last checkpoint stands, train, evaluate, save; what it comes to goes into `result`.

    folder: on the main rank alone. to_the_end: signals are listened to until its block ends, for what ends a process, a
    launcher's own handlers too, would cut into the writing.
    """
    config, ranks = order.config, plugin.ranks
    inputs = read(order)
    digest = ranks.from_main(inputs.digest)
    prepared = ready(plugin, order, inputs)
    policy, pairs, max_steps, found = inputs.policy, inputs.pairs, inputs.max_steps, prepared.found

    about = manifest(config, plugin, prepared.used, pairs, digest)
    if found:
        ranks.from_main(lambda: check_checkpoint(order, *found, about))
    if folder:
        folder.note(total_steps=max_steps)
        trackers.trackers += [Jsonl(), *(TRACKERS.build(of) for of in config.tracker.values()), *order.trackers]
        begun_at = found[1]["step"] if found else 0
        trackers.start(RunInfo(order.folder, order.experiment, resolved(config), max_steps, begun_at))
    report(plugin, prepared.optimizer, config, policy, pairs, inputs.adapter)

    def describe(folder: Path) -> None:
        plugin.models[Which.policy].save_config(folder)
        policy.tokenizer.save_pretrained(folder)
        inputs.adapter.describe(folder)

    moves = prepared.reference is not None and prepared.reference.moves
    best = Keep.asked(config.train, prepared.loss)
    checkpoints = Checkpoints(order.folder / "checkpoints", plugin, about, best, moves, describe)
    loop = loop_over(
        plugin,
        order,
        inputs,
        prepared,
        trackers,
        checkpoints,
        note_step=lambda step: folder.note(steps=step) if folder else None,
    )
    rungs = [rung_step(share, max_steps) for share in config.sweep.rungs if config.sweep.racing]
    pair_files = PairFiles(order.folder, pairs.texts, lambda step: config.train.keep_pairs or step in rungs)
    if folder:
        loop.note_pairs = pair_files.write
        loop.note_test_pairs = PairFiles(order.folder, pairs.test_texts, names=(TEST_PAIRS, TEST_TEXTS)).write
    to_the_end.enter_context(loop.stop.listening())
    if prepared.reference:
        seen = max_steps * config.train.global_batch_size if pairs.size is None else pairs.size
        prepared.reference.begin(pairs, seen, order.folder, loop.stop)
    before = answers(plugin, policy.tokenizer, pairs, config.train)
    if found:
        loop.resume(Path(found[0]))
        log.info("resumed at step %d of %d, from %s", loop.step, max_steps, found[0])
    loop.run()
    result.metrics = loop.eval_metrics
    memory = ranks.peak_memory_bytes()
    if folder:
        folder.note(steps=loop.step, eval=loop.eval_metrics, peak_memory_bytes=memory, **loop.speed.overall())
    if loop.stopped_by:
        name = signal.Signals(loop.stopped_by).name
        log.warning("Stopped by %s after step %d of %d; everything is saved.", name, loop.step, max_steps)
        raise Stopped(loop.stopped_by)
    if loop.step < max_steps:
        log.info("Saved after step %d of %d, to be compared with the other points.", loop.step, max_steps)
        raise Waiting
    result.test = loop.test()
    if folder:
        folder.note(test=result.test)
    after = answers(plugin, policy.tokenizer, pairs, config.train)
    plugin.save_weights(order.folder / "model")
    if folder:
        policy.tokenizer.save_pretrained(order.folder / "model")
        answered = {"before training": before, "after training": after}
        few = config.train.samples
        write_samples(order.folder / "samples.md", pairs.texts[:few], answered, pair_files.most_wrong(few))
        draw_plots(order.folder)


def report(
    plugin: Plugin,
    optimizer: OptimizerFactory,
    config: RunConfig,
    policy: CausalLM,
    pairs: TokenizedData,
    adapter: Adapter,
) -> None:
    """Tell the user what was found: rows, skipped ones by reason, the model's size and what each rank holds."""
    size = "endless" if pairs.size is None else f"{pairs.size:,}"
    form = f"; rows as {pairs.form}" if pairs.form else ""
    test = f" and {len(pairs.test)} for the test" if pairs.test else ""
    count, cut = len(pairs.held_out), pairs.truncated
    log.info("data: %s training pairs, %d held out%s, %d truncated%s", size, count, test, cut, form)
    for reason, rows in pairs.skipped.items():
        shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        log.warning("skipped %d rows: %s (rows %s)", len(rows), reason, shown)
    footprint = plugin.footprint(optimizer.state_bytes)
    held = f"; per rank {told(plugin.ranks, footprint)}" if footprint else ""
    log.info("model: %s, %d ranks%s", plugin.models[Which.policy].describe(), plugin.ranks.world_size, held)
    for part, dropout in {"model": config.model.dropout, "adapter": adapter.dropout}.items():
        if dropout > 0:
            log.warning("%s.dropout is above 0: the loss now depends on how the work is split", part)


def draw_page(folder: Path) -> None:
    """Write report.html; a page that cannot be written ends no run."""
    from orpo_exp.pages import write_run_page

    try:
        write_run_page(folder)
    except Exception as error:
        log.warning("report.html could not be written: %s: %s", type(error).__name__, error)


def draw_plots(folder: Path) -> None:
    """Draw the curves; a picture that cannot be drawn ends no run."""
    from orpo_exp.tracking.plots import plot_run

    try:
        plot_run(folder)
    except Exception as error:
        log.warning("the plots could not be drawn: %s: %s", type(error).__name__, error)
