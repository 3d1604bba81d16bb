"""From a loss to its value without gradient, and to what a plugin back-propagates, for either scope it may declare."""

from collections.abc import Sequence

import torch
from torch import Tensor

from orpo_exp.losses import Loss, Scope
from orpo_exp.plugins import Objective, Plugin, Ranks
from orpo_exp.training.sharing import Share
from orpo_exp.types import LossOutput, PairLogps, Span, TokenizedPair, TokenLogps


def evaluated(
    plugin: Plugin, loss: Loss, share: Share, compared: PairLogps | None, weight: float
) -> tuple[LossOutput, PairLogps]:
    """This replica's output for all of its pairs, each scored once and without gradient, see `make_objective`; and
    their log-probabilities."""
    logps = plugin.score(share.batches)
    if loss.scope is Scope.pair:
        return loss(logps, compared and compared.to(logps.chosen.values.device), weight, share.counts), logps
    whole, _ = gather_logps(plugin.ranks, logps)
    others = compared and gather_logps(plugin.ranks, compared)[0]
    return reported_once(plugin.ranks, loss(whole, others, weight, share.counts)), logps


def make_objective(
    plugin: Plugin, loss: Loss, share: Share, compared: PairLogps | None, weight: float
) -> tuple[Objective, list[LossOutput] | None]:
    """The objective of one global step; and, once it has been run, this replica's outputs, or None: then they are what
    the objective returned.

    compared: log-probabilities of this replica's pairs under the reference policy, where the loss needs one.
    Summed over replicas, the losses and terms of the outputs are those of the global batch.
    """
    if loss.scope is Scope.pair:

        def of_micro_batch(number: int, logps: PairLogps) -> LossOutput:
            others = compared and share.part(number, compared)
            return loss(logps, others and others.to(logps.chosen.values.device), weight, share.counts)

        return of_micro_batch, None

    # Score the global batch without gradient, differentiate the loss by the log-probabilities, and let the second pass
    # back-propagate sum(dL/dlogp * logp), whose gradient is the loss's own. Where each replica has one micro-batch, its
    # log-probabilities are all there is to score: one pass is both.
    known: list[LossOutput] = []
    own: dict[Span, TokenLogps] = {}  # the gradients of this replica's tokens; the second pass need not have all spans

    def differentiate(scored: PairLogps) -> None:
        whole, first = gather_logps(plugin.ranks, scored)
        spans = whole.by_span()
        wanted = [logps.values.requires_grad_() for logps in spans.values()]
        others = compared and gather_logps(plugin.ranks, compared)[0]
        output = loss(whole, others, weight, share.counts)
        # one gradient for each scored token of the global batch, (tokens,) by span
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(output.loss, wanted, allow_unused=True)
        for span, gradient in zip(spans, gradients, strict=True):
            if gradient is not None:
                own[span] = TokenLogps(gradient, spans[span].lengths).slice(first, first + len(share.pairs))
        known.append(reported_once(plugin.ranks, output))

    one_pass = len(share.parts) == 1 and plugin.objective_everywhere and loss.gradient_needs == loss.needs
    if not one_pass:
        differentiate(plugin.score(share.batches))

    def back_propagated(number: int, logps: PairLogps) -> LossOutput:
        if one_pass:
            differentiate(logps)
        by_span = logps.by_span()
        parts = [(share.part(number, gradient).values, by_span[span].values) for span, gradient in own.items()]
        return LossOutput(torch.stack([(g.to(v.device) * v).sum(dtype=torch.float64) for g, v in parts]).sum(), {})

    return back_propagated, known


def reported_once(ranks: Ranks, whole: LossOutput) -> LossOutput:
    """This replica's share of an output that every replica holds whole: all of it on the first, nothing elsewhere."""
    if ranks.replica == 0:
        return whole
    nothing = {name: torch.zeros_like(value) for name, value in whole.terms.items()}
    no_pair = {name: value[:0] for name, value in whole.per_pair.items()}
    return LossOutput(torch.zeros_like(whole.loss), nothing, no_pair)


def gather_logps(ranks: Ranks, own: PairLogps) -> tuple[PairLogps, int]:
    """The log-probabilities of all replicas, on the CPU in their order and without gradient, and the place of this
    replica's first pair."""
    gathered: dict[Span, TokenLogps] = {}
    first = 0
    for span, logps in own.by_span().items():
        lengths = ranks.gather(logps.lengths)  # (pairs,) of each replica
        squared = None if logps.log_squared is None else torch.cat(ranks.gather(logps.log_squared))
        gathered[span] = TokenLogps(torch.cat(ranks.gather(logps.values.detach())), torch.cat(lengths), squared)
        first = sum(len(part) for part in lengths[: ranks.replica])
    return PairLogps.from_spans(gathered), first


def gather_rows(ranks: Ranks, own: Sequence[TokenizedPair]) -> Tensor:
    """The rows of the data of all replicas' pairs, (pairs,) int64 in the order of the replicas."""
    return torch.cat(ranks.gather(torch.tensor([pair.row for pair in own], dtype=torch.int64)))
