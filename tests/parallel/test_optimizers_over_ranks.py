"""Optimizers on plugins that are said to run them. `uv run pytest -m parallel`."""

import json

import pytest
from optimizer_curves import SHARED, STEPS, build, every_optimizer, trained, write_curves

from orpo_exp.plugins import Place, start_ranks
from orpo_exp.plugins.ddp import DDP
from orpo_exp.plugins.ranks import left_afterwards

pytestmark = pytest.mark.parallel


def test_two_ranks_give_the_curve_of_one_and_go_on_bit_for_bit(tmp_path):
    assert start_ranks(2, write_curves, tmp_path) == 0
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves.keys() == SHARED.keys()
    with left_afterwards():
        for name, factory in every_optimizer().items():
            alone = DDP(DDP.Config(), Place())
            alone.prepare(build, factory.make, None)
            expected = trained(alone, STEPS)
            tried = {shared: of[name] for shared, of in curves.items() if name in of}
            assert tried, name
            for shared, (curve, rest, resumed) in tried.items():
                assert curve == pytest.approx(expected, rel=1e-4), (name, shared)
                assert resumed == rest, (name, shared)
