"""What a policy's log-probabilities of some pairs come to, all of them together and each by itself."""

from orpo_exp.losses import Loss
from orpo_exp.plugins import Plugin
from orpo_exp.training.metrics import reduce_outputs
from orpo_exp.training.objectives import evaluated
from orpo_exp.training.pair_results import PairResults, gathered
from orpo_exp.training.reference import Reference
from orpo_exp.training.sharing import Share


def measured(
    plugin: Plugin, loss: Loss, share: Share, reference: Reference | None, split: str, weight: float, step: int
) -> tuple[dict[str, float], PairResults]:
    """Metrics over all replicas' pairs, each scored exactly once and without gradient, as one global batch: no mean of
    means; and the results pair by pair. Called on all ranks. split: as the reference knows the pairs."""
    compared = reference.logps(split, share) if reference else None
    output, logps = evaluated(plugin, loss, share, compared, weight)
    metrics = reduce_outputs(plugin.ranks, [output], share.counts)
    return metrics, gathered(step, plugin.ranks, share, output, logps)
