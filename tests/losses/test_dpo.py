"""Every loss with a reference against TRL's released code and against its formula in plain Python."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from support import span

from orpo_exp.cli import compose
from orpo_exp.losses import LOSSES, Loss
from orpo_exp.losses.base import counts_of
from orpo_exp.types import LossOutput, PairLogps, TokenLogps

# benchmarks/trl_dpo_losses.py --json
GOLDEN = json.loads((Path(__file__).parent / "golden_dpo.json").read_text())
Answers = list[list[float]]
Sides = dict[str, Answers]


def make(name: str, **options: Any) -> Loss:
    """The loss of that name, its settings checked against its schema as on the command line."""
    schema = ConfigStore.instance().repo["schema"]["loss"][f"{name}.yaml"].node
    return LOSSES.build(OmegaConf.to_object(OmegaConf.merge(schema, options)))


def logps(sides: Sides, squared: Sides | None = None, dtype: torch.dtype = torch.float64) -> PairLogps:
    def side(name: str) -> TokenLogps:
        plain = span(*sides[name])
        extra = None if squared is None else span(*squared[name]).values.detach().to(dtype)
        return TokenLogps(plain.values.detach().to(dtype).requires_grad_(), plain.lengths, extra)

    return PairLogps(side("chosen"), side("rejected"))


def first(sides: Sides, pairs: int) -> Sides:
    return {name: rows[:pairs] for name, rows in sides.items()}


def run(name: str, options: dict[str, Any], policy: PairLogps, reference: PairLogps) -> LossOutput:
    out = make(name, **options)(policy, reference, 0.0, counts_of(policy))
    out.loss.backward()
    return out


def gradients(policy: PairLogps) -> list[float]:
    found = [side.values.grad for side in (policy.chosen, policy.rejected)]
    assert all(g is not None for g in found)
    return [value for g in found if g is not None for value in g.tolist()]


# --- against TRL


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['loss']}-{c['pairs']}-{c['options']}")
def test_value_and_gradient_are_trls(case):
    wpo = case["options"].get("wpo", False)
    policy = logps(first(GOLDEN["policy"], case["pairs"]), first(GOLDEN["log_squared"], case["pairs"]) if wpo else None)
    out = run(case["loss"], case["options"], policy, logps(first(GOLDEN["reference"], case["pairs"])))
    assert out.loss.item() == pytest.approx(case["value"], rel=1e-6)
    if case["chosen"] is not None:  # TRL has no gradient for hinge with WPO
        wanted = [g for side in ("chosen", "rejected") for row in case[side] for g in row]
        assert gradients(policy) == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_label_smoothing_is_trls():
    """TRL's sigmoid has none any more; its AOT on a single pair, where nothing is sorted, is the same formula."""
    case = next(c for c in GOLDEN["cases"] if c["loss"] == "aot" and c["pairs"] == 1 and c["options"])
    policy = logps(first(GOLDEN["policy"], 1))
    out = run("dpo", case["options"], policy, logps(first(GOLDEN["reference"], 1)))
    assert out.loss.item() == pytest.approx(case["value"], rel=1e-12)
    assert gradients(policy) == pytest.approx(case["chosen"][0] + case["rejected"][0], rel=1e-10)


# --- against numbers found elsewhere


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("dpo", {}, 0.723448),
        ("dpo_hinge", {}, 1.05),
        ("ipo", {}, 26.248472),
        ("dpo_robust", {"label_smoothing": 0.1}, 0.729698),
        ("nca_pair", {}, 1.401449),
        ("bco_pair", {}, 1.414105),
        ("sppo_hard", {}, 57.25),
        ("apo_zero", {}, 1.012466),
        ("apo_down", {}, 1.012373),
        ("dpo_norm", {}, 0.698770),
    ],
)
def test_golden_sums(name, options, value):
    def spread(*sums: tuple[float, int]) -> Answers:
        return [[total / n] * n for total, n in sums]

    policy = logps({"chosen": spread((-10, 5), (-20, 8)), "rejected": spread((-12, 6), (-18, 4))})
    reference = logps({"chosen": spread((-11, 5), (-19, 8)), "rejected": spread((-11.5, 6), (-19.5, 4))})
    assert run(name, options, policy, reference).loss.item() == pytest.approx(value, abs=5.1e-7)


def test_cdpo_is_dpo_with_smoothed_labels():
    composed = compose(["+experiment=quickstart", "loss=cdpo"], None).loss
    assert composed.label_smoothing == 0.1
    assert type(LOSSES.build(OmegaConf.to_object(composed))) is type(make("dpo"))


# --- against the formulas, in plain Python


def ls(x: float) -> float:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def sg(x: float) -> float:
    return math.exp(ls(x))


def plain(name: str, given: dict[str, Any], policy: Sides, reference: Sides, weights: list[float]) -> float:
    """The loss from lists of numbers; weights: WPO's, one for each pair."""
    o = {"beta": 0.1, "f_divergence": "reverse_kl", "alpha_divergence": 0.5, "ld_alpha": 1.0, "nll_weight": 0.0}
    own = {"dpo_robust": 0.1, "exo_pair": 1e-3}
    o |= {"label_smoothing": own.get(name, 0.0), "tau": 0.05} | given
    b, e, a = o["beta"], o["label_smoothing"], o["alpha_divergence"]
    tail = 1.0 if o["ld_alpha"] is None else o["ld_alpha"]
    score = {
        "reverse_kl": lambda w: w,
        "forward_kl": lambda w: 1 - 1 / math.exp(w),
        "js": lambda w: math.log(2 * math.exp(w) / (math.exp(w) + 1)),
        "alpha": lambda w: (math.exp(w) ** (a - 1) - 1) / (a - 1),
    }[o["f_divergence"]]
    rows = []
    for c, r, ref_c, ref_r in zip(*(s[k] for s in (policy, reference) for k in ("chosen", "rejected")), strict=True):
        n = min(len(c), len(r))
        rows.append([math.fsum(x[:n]) + tail * math.fsum(x[n:]) for x in (c, r, ref_c, ref_r)] + [len(c), len(r)])
    count = len(rows)
    smooth = lambda x: -(1 - e) * ls(x) - e * ls(-x)  # noqa: E731
    if name == "aot":
        d = zip(sorted(r[0] - r[1] for r in rows), sorted(r[2] - r[3] for r in rows), strict=True)
        losses = [smooth(b * (x - y)) for x, y in d]
    elif name == "aot_unpaired":
        d = zip(sorted(r[0] - r[2] for r in rows), sorted(r[1] - r[3] for r in rows), strict=True)
        losses = [smooth(b * (x - y)) for x, y in d]
    else:
        losses = []
        for s_c, s_r, ref_c, ref_r, n_c, n_r in rows:
            w_c, w_r = s_c - ref_c, s_r - ref_r
            f_c, f_r = score(w_c), score(w_r)
            delta, per_token, u_c, u_r = b * (f_c - f_r), f_c / n_c - f_r / n_r, b * w_c, b * w_r
            m = sg(delta / o["tau"])
            losses.append(
                {
                    "dpo": lambda d=delta: smooth(d),
                    "dpo_hinge": lambda d=delta: max(0.0, 1 - d),
                    "dpo_robust": lambda d=delta: (-(1 - e) * ls(d) + e * ls(-d)) / (1 - 2 * e),
                    "dpo_norm": lambda p=per_token: -ls(b * p),
                    "ipo": lambda p=per_token: (p - 1 / (2 * b)) ** 2,
                    "exo_pair": lambda d=delta: sg(d) * (ls(d) - math.log(1 - e)) + sg(-d) * (ls(-d) - math.log(e)),
                    "discopop": lambda d=delta, m=m: (1 - m) * -ls(d) + m * math.exp(-d),
                    "nca_pair": lambda c=u_c, r=u_r: -ls(c) - ls(-c) / 2 - ls(-r) / 2,
                    "bco_pair": lambda c=u_c, r=u_r: -ls(c) - ls(-r),
                    "sppo_hard": lambda c=w_c, r=w_r: (c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
                    "apo_zero": lambda c=u_c, r=u_r: 1 - sg(c) + sg(r),
                    "apo_down": lambda c=u_c, r=u_r: sg(c) + 1 - sg(c - r),
                }[name]()
            )
    tokens = [value for row in policy["chosen"] for value in row]
    nll = -math.fsum(tokens) / len(tokens)
    return math.fsum(w * x for w, x in zip(weights, losses, strict=True)) / count + o["nll_weight"] * nll


def wpo_weights(policy: Sides, squared: Sides) -> list[float]:
    weights = [1.0] * len(policy["chosen"])
    for side in ("chosen", "rejected"):
        for i, (row, extra) in enumerate(zip(policy[side], squared[side], strict=True)):
            weights[i] *= math.exp(math.fsum(x - y for x, y in zip(row, extra, strict=True)) / len(row))
    return weights


def numeric_gradient(name: str, options: dict[str, Any], policy: Sides, reference: Sides, weights: list[float]):
    found, h = [], 1e-5
    for side in ("chosen", "rejected"):
        for row in policy[side]:
            for t, value in enumerate(row):
                ends = []
                for row[t] in (value + h, value - h):
                    ends.append(plain(name, options, policy, reference, weights))
                row[t] = value
                found.append((ends[0] - ends[1]) / (2 * h))
    return found


MORE = [
    {"loss": "dpo", "options": {"label_smoothing": 0.1}},
    {"loss": "dpo", "options": {"label_smoothing": 0.3, "f_divergence": "js", "wpo": True, "nll_weight": 1.0}},
    {"loss": "dpo", "options": {"label_smoothing": 0.3, "f_divergence": "alpha", "alpha_divergence": 0.2}},
    {"loss": "aot", "options": {"label_smoothing": 0.3, "ld_alpha": 0.6, "nll_weight": 2.0}},
    {"loss": "ipo", "options": {"f_divergence": "forward_kl", "wpo": True, "ld_alpha": 0.6, "nll_weight": 0.5}},
    {"loss": "apo_down", "options": {"wpo": True, "ld_alpha": 0.6, "nll_weight": 0.5}},
    {"loss": "discopop", "options": {"f_divergence": "js", "wpo": True, "ld_alpha": 0.6, "tau": 0.2}},
]


def random_batch(pairs: int) -> tuple[Sides, Sides, Sides]:
    """Policy, reference and summed squares of answers of one to a dozen tokens, each a float32 exactly."""
    rng = random.Random(3)
    lengths = {side: [rng.randint(1, 12) for _ in range(pairs)] for side in ("chosen", "rejected")}

    def sides(low: float, high: float) -> Sides:
        fits = lambda: torch.tensor(-rng.uniform(low, high)).item()  # noqa: E731
        return {side: [[fits() for _ in range(n)] for n in lengths[side]] for side in lengths}

    return sides(0.01, 3.0), sides(0.01, 3.0), sides(0.01, 2.0)


@pytest.mark.parametrize("batch", ["golden", "random"])
@pytest.mark.parametrize(
    "case", [c for c in GOLDEN["cases"] if c["pairs"] > 1] + MORE, ids=lambda c: f"{c['loss']}-{c['options']}"
)
def test_value_and_gradient_are_the_formulas(case, batch):
    name, options = case["loss"], case["options"]
    if options.get("alpha_divergence") == 1.0:
        options = {key: value for key, value in options.items() if "divergence" not in key}  # the limit: reverse KL
    policy, reference, squared = random_batch(9)
    if batch == "golden":
        policy, reference, squared = (GOLDEN[key] for key in ("policy", "reference", "log_squared"))
    weights = wpo_weights(policy, squared) if options.get("wpo") else [1.0] * len(policy["chosen"])
    wanted = plain(name, options, policy, reference, weights)
    slopes = numeric_gradient(name, options, policy, reference, weights)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6 if batch == "golden" else 1e-12)):
        given = logps(policy, squared, dtype)
        out = run(name, case["options"], given, logps(reference, dtype=dtype))
        assert out.loss.dtype == torch.float64
        assert out.loss.item() == pytest.approx(wanted, rel=tolerance)
        assert gradients(given) == pytest.approx(slopes, rel=1e-5, abs=2e-9)
