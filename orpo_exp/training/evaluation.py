"""Evaluation: every held-out pair exactly once, on any number of replicas."""

from collections.abc import Sequence

from orpo_exp.layouts import Layout
from orpo_exp.losses import Loss, Scope
from orpo_exp.plugins import Plugin
from orpo_exp.training.metrics import reduce_outputs
from orpo_exp.training.objectives import gather_logps, reported_once
from orpo_exp.training.reference import HELD_OUT, Reference
from orpo_exp.training.sharing import share
from orpo_exp.types import Counts, TokenizedPair


def evaluate(
    plugin: Plugin,
    layout: Layout,
    loss: Loss,
    pairs: Sequence[TokenizedPair],
    micro_batch_size: int,
    weight: float,
    reference: Reference | None,
) -> dict[str, float]:
    """Loss, terms and metrics of the whole evaluation set, as of one global batch: no mean of means.

    Called on every rank; every rank gets the same numbers.
    """
    counts = Counts.of(pairs)
    shares = share(pairs, micro_batch_size, plugin.data_parallel_size, plugin.data_parallel_rank)
    micro_batches = [layout.collate(part, loss.needs) for part in shares]
    logps = plugin.score(micro_batches)
    own = [pair for part in shares for pair in part]
    compared = None if reference is None else reference.logps(HELD_OUT, own, micro_batches)
    if loss.scope is Scope.batch:
        whole, _ = gather_logps(plugin, logps)
        reference_whole = None if compared is None else gather_logps(plugin, compared)[0]
        output = reported_once(plugin, loss(whole, reference_whole, weight, counts))
    else:
        output = loss(logps, compared and compared.to(logps.chosen.values.device), weight, counts)
    metrics = reduce_outputs(plugin, [output], counts)
    del metrics["stop"]
    return metrics
