"""How the pairs of one global step are shared among replicas and micro-batches."""

from collections.abc import Sequence

from orpo_exp.types import TokenizedPair


def share(
    pairs: Sequence[TokenizedPair], micro_batch_size: int, replicas: int, replica: int
) -> list[list[TokenizedPair]]:
    """This replica's micro-batches of at most `micro_batch_size` pairs each; some may be empty.

    Every replica gets equally many. Pairs of like length share a micro-batch, and the replicas' micro-batches of one
    round are neighbours in length: little padding, and no replica waits long for another.
    """
    ordered = sorted(pairs, key=lambda pair: -pair.length)
    rounds = max(1, -(-len(ordered) // (micro_batch_size * replicas)))
    groups = rounds * replicas
    bounds = [len(ordered) * i // groups for i in range(groups + 1)]
    return [
        ordered[bounds[group] : bounds[group + 1]]
        for group in (round_ * replicas + replica for round_ in range(rounds))
    ]
