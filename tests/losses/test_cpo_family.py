"""CPO, SLiC-HF, SimPO, CPO-SimPO, AlphaPO and RRHF: everything that holds for all of them.

TRL's numbers come from `uv run benchmarks/trl_cpo_kto_losses.py`, where the batch and TRL's settings are.
"""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from support import span

from orpo_exp.losses import LOSSES, Loss, Scope
from orpo_exp.losses.base import counts_of, smoothed_logistic
from orpo_exp.losses.cpo import CPO, SLiC
from orpo_exp.losses.rrhf import RRHF
from orpo_exp.losses.simpo import AlphaPO, CPOSimPO, SimPO
from orpo_exp.types import LossOutput, PairLogps

TRL = json.loads((Path(__file__).parent / "golden_trl_cpo_kto.json").read_text())
TRL_CASES = [case for case in TRL["cases"] if case["loss"] != "kto"]
CLASSES = {"cpo": CPO, "slic": SLiC, "simpo": SimPO, "cpo_simpo": CPOSimPO, "alphapo": AlphaPO, "rrhf": RRHF}
CASES = [
    ("cpo", {}), ("cpo", {"beta": 0.4, "label_smoothing": 0.2, "alpha": 0.3}), ("slic", {}),
    ("slic", {"beta": 0.45, "alpha": 0.2}), ("simpo", {}),
    ("simpo", {"beta": 1.5, "gamma": 1.1, "label_smoothing": 0.1}), ("cpo_simpo", {}),
    ("cpo_simpo", {"alpha": 0.05, "label_smoothing": 0.3}), ("alphapo", {}),
    ("alphapo", {"alpha": -0.6, "nll_weight": 0.5}), ("alphapo", {"alpha": 1e-9}), ("alphapo", {"alpha": 0.0}),
    ("alphapo", {"alpha": 0.8, "label_smoothing": 0.1}), ("rrhf", {}), ("rrhf", {"margin": 0.3, "nll_weight": 0.1}),
]  # fmt: skip
RNG = random.Random(3)
SEVERAL = [
    tuple([-RNG.expovariate(1.0) for _ in range(RNG.randint(1, 7))] for _ in ("chosen", "rejected")) for _ in range(9)
]
BATCHES = {
    "one": [([-0.1, -0.5, -2.0], [-1.0, -0.2, -3.0, -0.7])],
    "wrong way round": [([-1.7, -0.9], [-0.3])],
    "several": SEVERAL,
}
Batch = list[tuple[list[float], list[float]]]


def make(name: str, settings: dict[str, float]) -> Loss:
    return LOSSES.build(CLASSES[name].Config(**settings))


def logps_of(batch: Batch) -> PairLogps:
    return PairLogps(span(*(chosen for chosen, _ in batch)), span(*(rejected for _, rejected in batch)))


def run(loss: Loss, logps: PairLogps) -> LossOutput:
    return loss(logps, None, loss.weight, counts_of(logps))


def minus_log_sigmoid(x: float) -> float:
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


def plain_preference(name: str, config: object, chosen: list[float], rejected: list[float]) -> float:
    """One pair's preference loss, from the papers' formulas in plain Python."""
    c = vars(config)
    if name == "slic":
        return max(0.0, 1 - c["beta"] * (math.fsum(chosen) - math.fsum(rejected)))
    if name == "rrhf":
        return max(0.0, math.fsum(rejected) / len(rejected) - math.fsum(chosen) / len(chosen) + c["margin"])
    if name == "cpo":
        margin = c["beta"] * (math.fsum(chosen) - math.fsum(rejected))
    else:
        scores = []
        for answer in (chosen, rejected):
            a = math.fsum(answer) / len(answer)
            alpha = c["alpha"] if name == "alphapo" else 0.0
            # for a small alpha the series a - alpha a^2 / 2 + ..., because the formula itself cancels
            scores.append(a - alpha * a * a / 2 if abs(alpha) < 1e-6 else (1 - math.exp(a) ** -alpha) / alpha)
        margin = c["beta"] * (scores[0] - scores[1]) - c["gamma"]
    eps = c["label_smoothing"]
    return (1 - eps) * minus_log_sigmoid(margin) + eps * minus_log_sigmoid(-margin)


def plain_nll(batch: Batch) -> float:
    return -math.fsum(logp for chosen, _ in batch for logp in chosen) / sum(len(chosen) for chosen, _ in batch)


def plain(name: str, config: object, batch: Batch) -> float:
    preference = math.fsum(plain_preference(name, config, *pair) for pair in batch) / len(batch)
    weight = {"simpo": 0.0, "alphapo": getattr(config, "nll_weight", 0.0)}.get(name)
    if weight is None:
        weight = config.nll_weight if name == "rrhf" else config.alpha
    return preference + weight * plain_nll(batch)


def slopes(name: str, config: object, batch: Batch, side: int, step: float = 1e-5) -> list[float]:
    """Central differences by every token of one side."""
    found = []
    for pair in batch:
        for token, value in enumerate(pair[side]):
            ends = []
            for moved in (value + step, value - step):
                pair[side][token] = moved
                ends.append(plain(name, config, batch))
            pair[side][token] = value
            found.append((ends[0] - ends[1]) / (2 * step))
    return found


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_value_and_gradient_against_plain_python(name, settings, batch):
    loss, logps = make(name, settings), logps_of(batch)
    out = run(loss, logps)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(plain(name, loss.config, batch), rel=1e-9)
    for side, answers in enumerate((logps.chosen, logps.rejected)):
        assert answers.values.grad.tolist() == pytest.approx(slopes(name, loss.config, batch, side), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("case", TRL_CASES, ids=lambda c: f"{c['loss']}-{c['config']}-{c['pairs']}")
def test_value_and_gradient_against_trl(case):
    logps = logps_of(list(zip(TRL["policy"]["chosen"], TRL["policy"]["rejected"], strict=True))[: case["pairs"]])
    out = run(make(case["loss"], case["config"]), logps)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(case["value"], rel=1e-9)
    for side in ("chosen", "rejected"):
        assert getattr(logps, side).values.grad.tolist() == pytest.approx(case["gradient"][side], rel=1e-8, abs=1e-15)
        assert out.per_pair[f"rewards/{side}"].mean().item() == pytest.approx(case["metrics"][f"rewards/{side}"])
    assert out.terms["nll_loss"].item() == pytest.approx(case["metrics"].get("nll_loss", out.terms["nll_loss"].item()))


@pytest.mark.parametrize(
    ("name", "settings", "golden"),
    [("cpo", {"beta": 0.1}, 0.6981), ("slic", {"beta": 0.1}, 1.0), ("simpo", {"beta": 2.0, "gamma": 0.5}, 0.5019)],
)
def test_golden_numbers(name, settings, golden):
    def answers(*sums_and_lengths: tuple[float, int]):
        return span(*([total / length] * length for total, length in sums_and_lengths))

    logps = PairLogps(answers((-10, 5), (-20, 8)), answers((-12, 6), (-18, 4)))
    assert run(make(name, settings), logps).terms["preference_loss"].item() == pytest.approx(golden, abs=5e-5)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_terms_and_declarations(name, settings):
    loss, logps = make(name, settings), logps_of(SEVERAL)
    assert (loss.scope, loss.needs, loss.needs_reference) == (Scope.pair, frozenset(), False)
    assert loss.weight_field == ("alpha" if name in ("cpo", "cpo_simpo") else None)
    out = run(loss, logps)
    nll = plain_nll(SEVERAL)
    assert set(out.terms) == {"preference_loss", "nll_loss"}
    assert out.terms["nll_loss"].item() == pytest.approx(nll, rel=1e-12)
    if loss.weight_field:  # the schedule's weight counts, not the configured one
        moved = loss(logps, None, 3.0, counts_of(logps))
        assert moved.loss.item() == pytest.approx(moved.terms["preference_loss"].item() + 3 * nll, rel=1e-12)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_swapping_does_what_the_formula_says(name, settings):
    loss = make(name, settings)
    there, back = (run(loss, logps_of(batch)) for batch in (SEVERAL, [(r, c) for c, r in SEVERAL]))
    torch.testing.assert_close(there.per_pair["rewards/margin"], -back.per_pair["rewards/margin"], rtol=0, atol=0)
    margin, eps = there.per_pair["rewards/margin"], getattr(loss.config, "label_smoothing", 0.0)
    gained = (back.terms["preference_loss"] - there.terms["preference_loss"]).item()
    if name == "cpo":  # -ls(-x) + ls(x) = x
        assert gained == pytest.approx(((1 - 2 * eps) * margin).mean().item(), rel=1e-12)
    swapped = math.fsum(plain_preference(name, loss.config, r, c) for c, r in SEVERAL) / len(SEVERAL)
    assert back.terms["preference_loss"].item() == pytest.approx(swapped, rel=1e-9)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_micro_batches_add_up_and_an_empty_one_adds_nothing(name, settings):
    loss, whole = make(name, settings), logps_of(SEVERAL)
    counts = counts_of(whole)
    parts = [loss(logps_of(part), None, loss.weight, counts) for part in (SEVERAL[:2], SEVERAL[2:3], [], SEVERAL[3:])]
    together = run(loss, whole)
    assert math.fsum(p.loss.item() for p in parts) == pytest.approx(together.loss.item(), rel=1e-14)
    for term, value in together.terms.items():
        assert math.fsum(p.terms[term].item() for p in parts) == pytest.approx(value.item(), rel=1e-14)
    parts[2].loss.backward()
    assert parts[2].loss.item() == 0
    assert all(len(values) == 0 for values in parts[2].per_pair.values())


def test_no_smoothing_is_minus_log_sigmoid_to_the_last_bit():
    margin = torch.tensor([-math.inf, -1e300, -3.7, -0.0, 0.0, 1e-9, 0.3, 1e300, math.inf], dtype=torch.float64)
    assert smoothed_logistic(margin, 0.0).tolist() == (-torch.nn.functional.logsigmoid(margin)).tolist()


EXTREMES = [0.0, -1e-45, -1e-10, -1e-7, -1e-3, -200.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "settings"), [*CASES, ("alphapo", {"alpha": 4.0}), ("alphapo", {"alpha": -4.0})])
def test_value_and_gradient_stay_finite(name, settings, dtype):
    loss = make(name, settings)
    for chosen in EXTREMES:
        for rejected in EXTREMES:
            sides = [
                type(s)(s.values.detach().to(dtype).requires_grad_(), s.lengths)
                for s in map(span, ([chosen], [rejected]))
            ]
            out = run(loss, PairLogps(*sides))
            out.loss.backward()
            assert math.isfinite(out.loss.item())
            for side, sign in zip(sides, (-1, 1), strict=True):
                assert torch.isfinite(side.values.grad.square()).all()  # so that a gradient norm is finite too
                if not settings.get("label_smoothing"):
                    assert (sign * side.values.grad >= 0).all()  # chosen is pushed up, rejected down
