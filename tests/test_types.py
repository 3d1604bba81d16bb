"""Ragged log-probabilities: pairs are picked out whole and in the order asked for."""

import torch
from support import span

from orpo_exp.types import PairLogps, TokenLogps


def values_of(logps: TokenLogps) -> list[list[float]]:
    return [tokens.tolist() for tokens in logps.tokens()]


def test_pairs_are_selected_whole_and_in_order():
    logps = PairLogps(span([-1, -2], [], [-3], [-4, -5, -6]), span([-7], [-8, -9], [-10], []))
    found = logps.select(torch.tensor([3, 0, 1, 3]))
    assert values_of(found.chosen) == [[-4, -5, -6], [-1, -2], [], [-4, -5, -6]]
    assert values_of(found.rejected) == [[], [-7], [-8, -9], []]
    assert found.prompt is None


def test_nothing_can_be_selected():
    found = PairLogps(span([-1, -2]), span([-7])).select(torch.tensor([], dtype=torch.int64))
    assert (values_of(found.chosen), len(found.rejected.values)) == ([], 0)


def test_the_squared_probabilities_go_along():
    logps = TokenLogps(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1, 2]), torch.tensor([-0.1, -0.2, -0.3]))
    found = logps.select(torch.tensor([1]))
    assert found.log_squared is not None
    assert found.log_squared.tolist() == logps.log_squared[1:].tolist()
