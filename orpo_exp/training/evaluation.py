"""Evaluation: every held-out pair exactly once, on any number of replicas."""

from orpo_exp.losses import Loss, Scope
from orpo_exp.plugins import Plugin
from orpo_exp.training.metrics import reduce_outputs
from orpo_exp.training.objectives import gather_logps, reported_once
from orpo_exp.training.reference import HELD_OUT, Reference
from orpo_exp.training.sharing import Share


def evaluate(plugin: Plugin, loss: Loss, share: Share, weight: float, reference: Reference | None) -> dict[str, float]:
    """Loss, terms and metrics of the whole evaluation set, as of one global batch: no mean of means.

    share: this replica's share of the held-out pairs. Called on every rank; every rank gets the same numbers.
    """
    logps = plugin.score(share.batches)
    compared = None if reference is None else reference.logps(HELD_OUT, share)
    if loss.scope is Scope.batch:
        whole, _ = gather_logps(plugin.ranks, logps)
        others = None if compared is None else gather_logps(plugin.ranks, compared)[0]
        output = reported_once(plugin.ranks, loss(whole, others, weight, share.counts))
    else:
        output = loss(logps, compared and compared.to(logps.chosen.values.device), weight, share.counts)
    return reduce_outputs(plugin.ranks, [output], share.counts)
