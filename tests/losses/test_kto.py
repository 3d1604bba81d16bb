"""KTO against TRL (`uv run benchmarks/trl_cpo_kto_losses.py`, where the batch is) and against plain Python."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from support import span

from orpo_exp.losses import Scope
from orpo_exp.losses.base import counts_of
from orpo_exp.losses.kto import KTO
from orpo_exp.types import LossOutput, Need, PairLogps, TokenLogps

TRL = json.loads((Path(__file__).parent / "golden_trl_cpo_kto.json").read_text())
TRL_CASES = [case for case in TRL["cases"] if case["loss"] == "kto"]
Rows = dict[str, list[list[float]]]


def logps_of(rows: Rows, pairs: int) -> PairLogps:
    return PairLogps(**{name: span(*answers[:pairs]) for name, answers in rows.items()})


def kto(policy: PairLogps, reference: PairLogps, settings: dict[str, float]) -> LossOutput:
    return KTO(KTO.Config(**settings))(policy, reference, 0.0, counts_of(policy))


def ratios(policy: Rows, reference: Rows, name: str, pairs: int) -> list[float]:
    both = list(zip(policy[name], reference[name], strict=True))[:pairs]
    return [math.fsum(p) - math.fsum(r) for p, r in both]


def plain_kl(policy: Rows, reference: Rows, pairs: int) -> float:
    names = ("mismatched_chosen", "mismatched_rejected")
    found = [ratio for name in names for ratio in ratios(policy, reference, name, pairs)]
    return max(0.0, math.fsum(found) / len(found))


def plain(policy: Rows, reference: Rows, pairs: int, settings: dict[str, float], kl: float) -> float:
    beta = settings["beta"]
    losses = [
        settings["desirable_weight"] * (1 - 1 / (1 + math.exp(-beta * (w - kl))))
        for w in ratios(policy, reference, "chosen", pairs)
    ] + [
        settings["undesirable_weight"] * (1 - 1 / (1 + math.exp(-beta * (kl - w))))
        for w in ratios(policy, reference, "rejected", pairs)
    ]
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("case", TRL_CASES, ids=lambda c: f"{c['config']}-{c['pairs']}")
def test_value_and_gradient_against_trl(case):
    policy, reference = (logps_of(TRL[side], case["pairs"]) for side in ("policy", "reference"))
    out = kto(policy, reference, case["config"])
    out.loss.backward()
    assert out.loss.item() == pytest.approx(case["value"], rel=1e-9)
    assert out.terms["preference_loss"].item() == out.loss.item()
    for name in ("kl", "rewards/chosen", "rewards/rejected"):
        assert out.per_pair[name].mean().item() == pytest.approx(case["metrics"][name], rel=1e-9)
    for name in ("chosen", "rejected"):
        gradient = getattr(policy, name).values.grad.tolist()
        assert gradient == pytest.approx(case["gradient"][name], rel=1e-8)
    for name in ("mismatched_chosen", "mismatched_rejected"):  # the KL has no gradient
        assert getattr(policy, name).values.grad is None
        assert set(case["gradient"][name]) == {0.0}


@pytest.mark.parametrize("pairs", [1, 2, 3])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.6), (0.0, 2.0)])
def test_value_and_gradient_against_plain_python(pairs, weights):
    settings = {"beta": 0.3, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    policy = {name: [list(answer) for answer in answers] for name, answers in TRL["policy"].items()}
    logps = logps_of(policy, pairs)
    out = kto(logps, logps_of(TRL["reference"], pairs), settings)
    out.loss.backward()
    kl = plain_kl(policy, TRL["reference"], pairs)
    assert out.per_pair["kl"].tolist() == pytest.approx([kl] * pairs, rel=1e-12)
    assert out.loss.item() == pytest.approx(plain(policy, TRL["reference"], pairs, settings, kl), rel=1e-12)
    step = 1e-5
    for name in ("chosen", "rejected"):
        slopes = []
        for answer in policy[name][:pairs]:
            for token, value in enumerate(answer):
                ends = []
                for moved in (value + step, value - step):
                    answer[token] = moved
                    ends.append(plain(policy, TRL["reference"], pairs, settings, kl))
                answer[token] = value
                slopes.append((ends[0] - ends[1]) / (2 * step))
        assert getattr(logps, name).values.grad.tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-10)


def test_policy_equal_to_the_reference():
    """KL 0 and every sigmoid 1/2; the gradient is that of a sigmoid at 0, 1/4, over 2 answers a pair."""
    policy, reference = logps_of(TRL["policy"], 3), logps_of(TRL["policy"], 3)
    out = kto(policy, reference, {"beta": 0.1})
    out.loss.backward()
    assert out.loss.item() == 0.5
    assert out.per_pair["kl"].tolist() == [0, 0, 0]
    assert policy.chosen.values.grad.tolist() == pytest.approx([-0.1 / 4 / 6] * 10, rel=1e-14)
    assert policy.rejected.values.grad.tolist() == pytest.approx([0.1 / 4 / 6] * 10, rel=1e-14)


def test_swapping_chosen_and_rejected():
    settings = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.6}

    def swapped(rows: Rows) -> Rows:
        other = {"chosen": "rejected", "rejected": "chosen"}
        other |= {f"mismatched_{here}": f"mismatched_{there}" for here, there in other.items()}
        return {other[name]: answers for name, answers in rows.items()}

    there = kto(logps_of(TRL["policy"], 3), logps_of(TRL["reference"], 3), settings)
    policy, reference = swapped(TRL["policy"]), swapped(TRL["reference"])
    back = kto(logps_of(policy, 3), logps_of(reference, 3), settings)
    torch.testing.assert_close(there.per_pair["rewards/margin"], -back.per_pair["rewards/margin"], rtol=0, atol=0)
    torch.testing.assert_close(there.per_pair["kl"], back.per_pair["kl"], rtol=1e-14, atol=0)
    kl = plain_kl(policy, reference, 3)
    assert back.loss.item() == pytest.approx(plain(policy, reference, 3, settings, kl), rel=1e-12)


def test_the_order_of_the_pairs_does_not_matter():
    turned = [{n: answers[1:] + answers[:1] for n, answers in TRL[side].items()} for side in ("policy", "reference")]
    settings = {"beta": 0.3}
    there = kto(*(logps_of(TRL[side], 3) for side in ("policy", "reference")), settings)
    back = kto(*(logps_of(rows, 3) for rows in turned), settings)
    assert there.loss.item() == pytest.approx(back.loss.item(), rel=1e-14)


def test_declarations():
    loss = KTO(KTO.Config())
    assert loss.needs_reference
    assert (loss.scope, loss.needs, loss.weight_field) == (Scope.batch, frozenset({Need.mismatched}), None)


def test_no_pairs_add_nothing():
    nothing = [PairLogps(span(), span(), None, span(), span()) for _ in range(2)]
    out = KTO(KTO.Config())(*nothing, 0.0, counts_of(logps_of(TRL["policy"], 3)))
    out.loss.backward()
    assert out.loss.item() == 0
    assert all(len(values) == 0 for values in out.per_pair.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_stay_finite(dtype):
    extremes = [0.0, -1e-45, -1e-10, -1e-7, -200.0]
    for values in itertools.product(extremes, repeat=3):
        policy, reference, mismatched = (torch.tensor([v], dtype=dtype) for v in values)
        one = torch.tensor([1])
        chosen, rejected = (TokenLogps(policy.clone().requires_grad_(), one) for _ in range(2))
        given = PairLogps(chosen, rejected, None, TokenLogps(mismatched, one), TokenLogps(policy, one))
        against = PairLogps(*[TokenLogps(reference, one)] * 2, None, *[TokenLogps(reference, one)] * 2)
        out = kto(given, against, {"beta": 5.0})
        out.loss.backward()
        assert math.isfinite(out.loss.item())
        for side, sign in ((chosen, -1), (rejected, 1)):
            assert torch.isfinite(side.values.grad).all()
            assert (sign * side.values.grad >= 0).all()
