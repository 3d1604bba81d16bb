"""What a plan counts, against loops written out and sums made by hand."""

import pytest
from support import pair, random_pairs

from orpo_exp.data.order import Order
from orpo_exp.data.tokenize import TokenizedData
from orpo_exp.layouts.padded import Padded
from orpo_exp.layouts.shared import Packed
from orpo_exp.planning import counts
from orpo_exp.planning.counts import Seat, count
from orpo_exp.planning.figures import Memory
from orpo_exp.preparing import Read
from orpo_exp.training.sharing import Sharing
from orpo_exp.types import TokenizedPair


def read_of(pairs: list[TokenizedPair], batch: int, steps: int) -> Read:
    data = TokenizedData(lambda places: [pairs[p] for p in places], len(pairs), pairs[:2], [], {}, 0, 99)
    return Read(None, None, None, None, None, data, Order(len(pairs), batch, 3), steps)  # type: ignore[arg-type]


def test_steps_are_counted_as_a_loop_over_the_order_counts_them():
    """Eleven pairs in batches of 4, over more than one epoch: the third step of each has 3 pairs."""
    pairs, order = random_pairs(11, 50), Order(11, 4, 3)
    packed = Sharing(Packed(Packed.Config()), Seat(0, 1), frozenset(), 2, 999)
    counted = count(read_of(pairs, 4, 5), packed)
    tokens, costs, rows, most = 0, [], 0, 0
    for step in range(1, 6):
        own = sorted((pairs[p] for p in order.positions(step)), key=lambda of: -of.length)
        tokens += sum(len(of.prompt_ids) + len(of.chosen_ids) + len(of.rejected_ids) for of in own)
        costs.append(sum(of.length - 2 for of in own))
        halves = [own[:2], own[2:]] if len(own) == 4 else [own[:1], own[1:]]
        most = max(most, *(sum(of.length - 2 for of in half) for half in halves))
        for half in halves:
            longest = max(len(of.prompt_ids) + max(len(of.chosen_ids), len(of.rejected_ids)) - 1 for of in half)
            rows += 2 * len(half) * longest
    assert (counted.tokens, counted.costs, counted.rounds) == (tokens, costs, 2)
    assert sum(of.length - 2 for of in counted.largest) == most
    assert counted.padding == 0
    assert counted.spared == pytest.approx(1 - sum(costs) / rows)
    assert counted.costs[counted.largest_step - 1] == max(costs)
    mean = sum(costs) / 5
    assert abs(costs[counted.typical(1)[0] - 1] - mean) == min(abs(cost - mean) for cost in costs)


def test_padding_by_hand():
    """Rows of 4, 3 and 3, 4 tokens, of which the last is left out: four rows of 3 positions with 10 tokens."""
    pairs = [pair(0, [1, 2], [3, 4], [5]), pair(1, [1, 2], [3], [5, 6])]
    counted = count(read_of(pairs, 2, 1), Sharing(Padded(Padded.Config()), Seat(0, 1), frozenset(), 2, 999))
    assert (counted.costs, counted.padding, counted.spared) == ([12], pytest.approx(2 / 12), 0)


def test_of_replicas_that_are_not_there_the_first_has_the_longest_pairs():
    pairs = random_pairs(12, 50)
    layout = Packed(Packed.Config())
    largest = []
    for replica in range(3):
        sharing = Sharing(layout, Seat(replica, 3), frozenset(), 2, 999)
        largest.append(layout.computed(count(read_of(pairs, 12, 4), sharing).largest))
    assert largest[0] == max(largest)


def test_only_so_many_steps_are_looked_at(monkeypatch):
    monkeypatch.setattr(counts, "MOST_STEPS", 3)
    sharing = Sharing(Packed(Packed.Config()), Seat(0, 1), frozenset(), 2, 999)
    assert len(count(read_of(random_pairs(12, 50), 4, 9), sharing).costs) == 3


def memory(at_once: bool = True, ranks: int = 1, there: int | None = 200, **parts: int | None) -> Memory:
    of = {"libraries": 10, "weights": 20, "gradients": 30, "state": 40, "activations": 15, "logits": 5}
    return Memory("cpu", of | parts, frozenset(), at_once, ranks, there)


def test_what_is_held_at_a_time():
    assert memory().together == 120
    assert memory(at_once=False).together == 70 + max(30, 15 + 5)
    assert memory(state=None).together is None
    assert Memory("cuda", memory().parts, frozenset({"state"}), True, 1, None).together == 80


def test_whether_it_fits():
    assert memory().fits
    assert not memory(ranks=2).fits
    assert memory(there=None).fits is None
    assert memory(state=None).fits is None
    assert not Memory("cpu", memory().parts, frozenset(), True, 1, 200, seen=201).fits
