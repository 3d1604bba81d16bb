from dataclasses import dataclass
from itertools import chain, pairwise

import pytest
from support import random_pairs, span

from orpo_exp.data.order import Order
from orpo_exp.layouts.padded import Padded
from orpo_exp.training.sharing import Share, Sharing
from orpo_exp.types import PairLogps


@dataclass(frozen=True)
class Place:
    """What sharing asks of the ranks."""

    replica: int
    replicas: int


def share(pairs, most_pairs: int | None, replicas: int, replica: int, most_tokens: int = 0) -> Share:
    return Sharing(Padded(Padded.Config()), Place(replica, replicas), frozenset(), most_pairs, most_tokens).of(pairs)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 64])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 64])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_every_pair_once_in_equally_many_micro_batches(count, micro_batch_size, replicas):
    pairs = random_pairs(count, 50)
    shares = [share(pairs, micro_batch_size, replicas, replica).parts for replica in range(replicas)]
    assert len({len(of_replica) for of_replica in shares}) == 1
    assert len(shares[0]) >= 1
    assert all(len(batch) <= micro_batch_size for of_replica in shares for batch in of_replica)
    rows = sorted(pair.row for of_replica in shares for batch in of_replica for pair in batch)
    assert rows == list(range(count))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("most_tokens", [1, 40, 200, 100_000])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_by_tokens_micro_batches_are_equally_many_and_about_as_large_as_they_may_be(count, most_tokens, replicas):
    pairs = random_pairs(count, 50)
    shares = [share(pairs, None, replicas, replica, most_tokens).parts for replica in range(replicas)]
    assert len({len(of_replica) for of_replica in shares}) == 1
    batches = [batch for of_replica in shares for batch in of_replica]
    assert sorted(pair.row for batch in batches for pair in batch) == list(range(count))
    longest = max((pair.length for pair in pairs), default=0)
    tokens = [sum(pair.length for pair in batch) for batch in batches]
    whole = sum(tokens)
    equal = whole / len(batches)  # more than the most where there are no more pairs to give each a batch
    assert all(of <= max(most_tokens, equal) + longest for of in tokens)  # cut between two pairs
    assert len(batches) <= max(replicas, min(-(-whole // most_tokens) + replicas, count + replicas))
    if most_tokens > longest and len(batches) > replicas:
        assert max(tokens) - min(tokens) <= 2 * longest  # no replica waits long for another


def test_pairs_of_like_length_share_a_micro_batch():
    shares = share(random_pairs(64, 50), 8, 1, 0).parts
    ends = [(max(p.length for p in batch), min(p.length for p in batch)) for batch in shares]
    assert all(shortest >= longest for (_, shortest), (longest, _) in pairwise(ends))


def test_a_share_knows_whose_numbers_are_whose():
    pairs = random_pairs(7, 50)
    of_second = share(pairs, 2, 2, 1)
    assert of_second.counts.pairs == 7
    assert [pair.row for pair in of_second.pairs] == [row for batch in of_second.batches for row in batch.rows]
    # a log-probability for each answer's token: the row of its pair
    rows = [[float(pair.row)] * len(pair.chosen_ids) for pair in of_second.pairs]
    whole = PairLogps(span(*rows), span(*rows))
    for number, part in enumerate(of_second.parts):
        found = of_second.part(number, whole).chosen.tokens()
        assert [values.tolist() for values in found] == [[pair.row] * len(pair.chosen_ids) for pair in part]


def test_an_epoch_sees_every_pair_once_and_its_last_batch_is_short():
    order = Order(size=22, global_batch_size=8, seed=0)
    assert order.steps_per_epoch == 3
    epochs = [[order.positions(3 * epoch + step) for step in (1, 2, 3)] for epoch in range(2)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [8, 8, 6]
        assert sorted(chain(*epoch)) == list(range(22))
    assert epochs[0] != epochs[1]


def test_the_order_follows_from_seed_and_step_alone():
    there, back = Order(22, 8, seed=3), Order(22, 8, seed=3)
    assert [there.positions(step) for step in range(1, 9)] == [back.positions(step) for step in range(8, 0, -1)][::-1]
    assert Order(22, 8, seed=4).positions(1) != there.positions(1)


def test_an_endless_source_is_read_straight_through():
    order = Order(None, 8, seed=0)
    assert order.steps_per_epoch is None
    assert order.positions(3) == list(range(16, 24))
