"""From a loss to what a plugin back-propagates, for either scope that a loss may declare."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from orpo_exp.losses import Loss, Scope
from orpo_exp.plugins import Objective, Plugin
from orpo_exp.types import Batch, Counts, LossOutput, PairLogps, Span, TokenLogps


def make_objective(
    plugin: Plugin,
    loss: Loss,
    micro_batches: Sequence[Batch],
    reference: PairLogps | None,
    weight: float,
    counts: Counts,
) -> tuple[Objective, list[LossOutput]]:
    """The objective of one global step, and the list that this replica's share of its numbers is put in.

    reference: log-probabilities of this replica's pairs under the reference policy, where the loss needs one.
    Summed over replicas, the list's losses and terms are those of the global batch.
    """
    if loss.scope is Scope.batch:
        return _batch_objective(plugin, loss, micro_batches, reference, weight, counts)
    outputs: list[LossOutput] = []
    bounds = [0, *accumulate(len(batch.rows) for batch in micro_batches)]

    def objective(number: int, logps: PairLogps) -> Tensor:
        own = None if reference is None else reference.slice(bounds[number], bounds[number + 1])
        output = loss(logps, own and own.to(logps.chosen.values.device), weight, counts)
        outputs.append(output)
        return output.loss

    return objective, outputs


def _batch_objective(
    plugin: Plugin,
    loss: Loss,
    micro_batches: Sequence[Batch],
    reference: PairLogps | None,
    weight: float,
    counts: Counts,
) -> tuple[Objective, list[LossOutput]]:
    """Score the global batch without gradient, differentiate the loss by the log-probabilities, and let the second
    pass back-propagate sum(dL/dlogp * logp), whose gradient is the loss's own."""
    own = plugin.score(micro_batches)
    whole, first = gather_logps(plugin, own)
    spans = whole.by_span()
    for logps in spans.values():
        logps.values.requires_grad_()
    output = loss(whole, None if reference is None else gather_logps(plugin, reference)[0], weight, counts)
    wanted = [logps.values for logps in spans.values()]
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(output.loss, wanted, allow_unused=True)

    # this replica's part of each span, micro-batch by micro-batch
    pieces: list[dict[Span, Tensor]] = [{} for _ in micro_batches]
    for span, gradient in zip(spans, gradients, strict=True):
        if gradient is None:  # no gradient by this span: the second pass need not have it
            continue
        sizes = [int(batch.score.lengths[span].sum()) for batch in micro_batches]
        start = int(spans[span].lengths[:first].sum())
        for piece, part in zip(pieces, gradient[start : start + sum(sizes)].split(sizes), strict=True):
            piece[span] = part

    def objective(number: int, logps: PairLogps) -> Tensor:
        again = logps.by_span()
        parts = [(gradient, again[span].values) for span, gradient in pieces[number].items()]
        return torch.stack([(g.to(v.device) * v).sum(dtype=torch.float64) for g, v in parts]).sum()

    return objective, [reported_once(plugin, output)]


def reported_once(plugin: Plugin, whole: LossOutput) -> LossOutput:
    """This replica's share of an output that every replica holds whole: all of it on the first, nothing elsewhere."""
    if plugin.data_parallel_rank == 0:
        return whole
    nothing = {name: torch.zeros_like(value) for name, value in whole.terms.items()}
    no_pair = {name: value[:0] for name, value in whole.per_pair.items()}
    return LossOutput(torch.zeros_like(whole.loss), nothing, no_pair)


def gather_logps(plugin: Plugin, own: PairLogps) -> tuple[PairLogps, int]:
    """The log-probabilities of all replicas, on the CPU in their order, and the place of this replica's first pair."""
    gathered: dict[Span, TokenLogps] = {}
    first = 0
    for span, logps in own.by_span().items():
        lengths = plugin.gather(logps.lengths)
        squared = None if logps.log_squared is None else torch.cat(plugin.gather(logps.log_squared))
        gathered[span] = TokenLogps(torch.cat(plugin.gather(logps.values)), torch.cat(lengths), squared)
        first = sum(len(part) for part in lengths[: plugin.data_parallel_rank])
    return PairLogps.from_spans(gathered), first
