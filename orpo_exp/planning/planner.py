"""Plans one run: on the ranks that would train it, or in one process of a machine that will not."""

import time
from dataclasses import replace

from orpo_exp.config import RunConfig, check_plugin
from orpo_exp.experiment import read
from orpo_exp.launchers import Elsewhere
from orpo_exp.layouts import LAYOUTS, Layout
from orpo_exp.losses import LOSSES
from orpo_exp.optimizers import OPTIMIZERS
from orpo_exp.planning.counts import Counted, Seat, count, evaluated
from orpo_exp.planning.figures import Figures, Memory, parts_of
from orpo_exp.planning.imagined import Imagined
from orpo_exp.planning.timing import timed
from orpo_exp.plugins import PLUGINS, Place
from orpo_exp.plugins.base import MICRO_BATCH_TOKENS
from orpo_exp.plugins.host import forget_peak, free_bytes, held_now, ranks_here
from orpo_exp.plugins.memory import Sizes, state_of
from orpo_exp.plugins.whole import described
from orpo_exp.preparing import Read, ready
from orpo_exp.runs.order import RunOrder
from orpo_exp.training.layout import settle
from orpo_exp.training.reference import REFERENCES
from orpo_exp.training.sharing import Sharing


def here(order: RunOrder, place: Place) -> Figures:
    """The plan of a run on these ranks, which all call it. What is sure to find no room is not tried."""
    config = order.config
    check_plugin(config, place.world_size, starting=True)
    plugin = PLUGINS.build(config.plugin, place)
    ranks, device = plugin.ranks, plugin.device
    began = time.perf_counter()
    inputs = read(order)
    ranks.from_main(inputs.digest)
    inputs.pairs.fingerprint()
    took = time.perf_counter() - began

    base = 0 if device.type == "cuda" else ranks.largest(held_now())
    sharers = 1 if device.type == "cuda" else ranks_here(ranks)
    there = ranks.smallest(free_bytes(device)) + sharers * base
    on_host = plugin.on_host if device.type == "cuda" else frozenset()
    memory = Memory(device.type, {"libraries": base}, on_host, True, sharers, there)
    model = Imagined(inputs.build.empty(), config.plugin.precision)
    sizes = sizes_of(config, model)
    expected = plugin.expected(config.plugin, place.world_size, sizes)
    known: dict[str, int | None] = {name: size or 0 for name, size in parts_of(expected).items()}
    if not ranks.everywhere(replace(memory, parts=memory.parts | known).fits is not False):
        return elsewhere(order, Elsewhere(place.world_size, device.type, sharers, there), inputs)

    began = time.perf_counter()
    prepared = ready(plugin, order, inputs)
    took += time.perf_counter() - began
    said = plugin.footprint(prepared.optimizer.state_bytes)
    if base and said:  # what is loaded with the model, or by it, is there as well now
        base = max(base, ranks.largest(held_now() - said.weights - said.copies))
    counted = count(inputs, prepared.sharing)
    fixed = {name: size and ranks.largest(size) for name, size in parts_of(said).items()}
    busy, notes = activations(model, inputs, prepared.sharing, counted)
    parts = {"libraries": base} | fixed | {name: size and ranks.largest(size) for name, size in busy.items()}
    at_once = ranks.largest(counted.rounds) > 1 or ranks.world_size > 1
    memory = replace(memory, parts=parts, at_once=at_once)
    done = prepared.found[1]["step"] if prepared.found else 0
    figures = told(order, inputs, prepared.sharing.layout, counted, model, sizes, memory, ranks.world_size, done, notes)
    if memory.fits is False:
        return replace(figures, untimed="it does not fit")
    files = figures.checkpoint_bytes or 0, sum(of.nbytes for of in model.whole)
    forget_peak(device)
    spent = timed(plugin, order, inputs, prepared, counted, took, files)
    return replace(figures, time=spent, memory=replace(memory, seen=ranks.peak_memory_bytes()))


def elsewhere(order: RunOrder, of: Elsewhere, inputs: Read | None = None) -> Figures:
    """The plan of a run on ranks that are not here: counted, not timed."""
    config = order.config
    check_plugin(config, of.ranks, starting=True)
    kind = PLUGINS.of(config.plugin)
    inputs = inputs or read(order)
    base = 0 if of.device == "cuda" else held_now()
    loss = LOSSES.build(config.loss)
    sample = inputs.pairs.train(inputs.steps.positions(1))
    layout = settle(config.layout, sample, inputs.policy.one_text_a_row, None)
    seat = Seat(0, max(kind.replica_of(config.plugin, of.ranks)) + 1)
    most = config.train.micro_batch_tokens or MICRO_BATCH_TOKENS[of.device]
    sharing = Sharing(layout, seat, loss.needs, config.train.micro_batch_pairs, most)
    counted = count(inputs, sharing)
    model = Imagined(inputs.build.empty(), config.plugin.precision)
    sizes = sizes_of(config, model)
    busy, notes = activations(model, inputs, sharing, counted)
    expected = kind.expected(config.plugin, of.ranks, sizes)
    if expected is None:
        notes.append("What this plugin holds is told where its ranks can be started: plan it there.")
    if seat.replicas < of.ranks:
        notes.append("Activations and logits are those of a whole model, of which each rank here computes a part.")
    on_host = kind.on_host if of.device == "cuda" else frozenset()
    parts = {"libraries": base} | parts_of(expected) | busy
    memory = Memory(of.device, parts, on_host, counted.rounds > 1 or of.ranks > 1, of.sharers, of.there)
    figures = told(order, inputs, layout, counted, model, sizes, memory, of.ranks, 0, notes)
    return replace(figures, untimed="its device is not here" if memory.fits is not False else "it does not fit")


def activations(
    model: Imagined, inputs: Read, sharing: Sharing, counted: Counted
) -> tuple[dict[str, int | None], list[str]]:
    """The parts that come and go with a micro-batch: with the largest in training, or in an evaluation where that takes
    more; and what is to be said of them."""
    layout, needs = sharing.layout, sharing.needs
    held_out = max(evaluated(inputs, sharing).parts, key=lambda part: layout.computed(part) if part else 0)
    try:
        training = model.trains(layout.collate(counted.largest, needs))
        blocks, head = max(training, model.scores(layout.collate(held_out, needs)), key=sum)
    except Exception as error:  # whatever an architecture does that needs numbers
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"activations": None, "logits": None}, [f"This model cannot be run without its numbers: {reason}"]
    return {"activations": blocks, "logits": head}, []


def sizes_of(config: RunConfig, model: Imagined) -> Sizes:
    """What the plugin will hold of all models, in bytes."""
    weights, trained = (sum(of.nbytes for of in some) for some in (model.whole, model.trained))
    if LOSSES.build(config.loss).needs_reference:
        kind = REFERENCES.of(config.reference)
        weights += trained if kind.of_trained else weights if kind.beside_policy else 0
    updated = model.updated()
    state = state_of(updated, OPTIMIZERS.build(config.optimizer).state_bytes)
    return Sizes(weights, trained, sum(of.nbytes for of in updated), state)


def told(
    order: RunOrder,
    inputs: Read,
    layout: Layout,
    counted: Counted,
    model: Imagined,
    sizes: Sizes,
    memory: Memory,
    ranks: int,
    done: int,
    notes: list[str],
) -> Figures:
    """All of it but the time."""
    pairs, train = inputs.pairs, order.config.train
    left, per_epoch = range(done + 1, inputs.max_steps + 1), inputs.steps.steps_per_epoch
    evaluated_after = [s for s in left if (train.eval_every and s % train.eval_every == 0) or s == inputs.max_steps]
    if len(counted.costs) < inputs.max_steps:
        notes = [*notes, f"Micro-batches are those of the first {len(counted.costs):,} steps."]
    return Figures(
        model=described(model.module, model.parameters, sum(of.numel() for of in model.trained)),
        pairs=pairs.size,
        held_out=len(pairs.held_out),
        cut=pairs.truncated,
        skipped=sum(len(rows) for rows in pairs.skipped.values()),
        batch=train.global_batch_size,
        steps=inputs.max_steps,
        done=done,
        epochs=None if per_epoch is None else inputs.max_steps / per_epoch,
        tokens=counted.tokens if pairs.size is None else sum(of.length for of in pairs.first(None)),
        padding=counted.padding,
        spared=counted.spared,
        layout=LAYOUTS.name(layout),
        rounds=counted.rounds,
        largest=(len(counted.largest), layout.computed(counted.largest)),
        ranks=ranks,
        evaluations=(len(evaluated_after) + (done == 0)) if pairs.held_out else 0,
        checkpoints=sum(1 for s in left if train.save_every and s % train.save_every == 0),
        checkpoint_bytes=None if sizes.state is None else sizes.updated + sizes.state,
        memory=memory,
        notes=tuple(notes),
    )
