"""What every loss with a reference keeps to: finiteness, additivity, symmetry, and what it refuses."""

import itertools
import math
from typing import Any

import pytest
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from support import span

from orpo_exp.losses import LOSSES, Loss, Scope
from orpo_exp.losses.base import counts_of
from orpo_exp.losses.dpo_base import FDivergence, divergence_score, tail_weighed, wpo_weight
from orpo_exp.schema import ConfigError
from orpo_exp.types import LossOutput, Need, PairLogps, TokenLogps

OF_THE_DIFFERENCE = ["dpo", "dpo_hinge", "dpo_robust", "dpo_norm", "ipo", "exo_pair", "discopop"]
OF_EACH_ANSWER = ["nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"]
OF_THE_BATCH = ["aot", "aot_unpaired"]
EVERY = OF_THE_DIFFERENCE + OF_EACH_ANSWER + OF_THE_BATCH

CHOSEN = [[-0.1, -0.5, -2.0], [-1.5, -0.3], [-0.7]]
REJECTED = [[-1.0, -0.2, -3.0, -0.7], [-0.4, -0.6, -0.8, -0.1, -0.9], [-1.3, -0.05]]
REFERENCE_CHOSEN = [[-0.4, -0.9, -1.8], [-1.1, -0.45], [-1.6]]
REFERENCE_REJECTED = [[-0.8, -0.3, -2.2, -0.9], [-0.6, -0.5, -1.4, -0.2, -0.7], [-1.0, -0.15]]
MODIFIERS: list[dict[str, Any]] = [{}, {"ld_alpha": 0.3}, {"nll_weight": 0.5}, {"beta": 5.0}]
DIVERGENCES: list[dict[str, Any]] = [
    {"f_divergence": "forward_kl"},
    {"f_divergence": "js"},
    {"f_divergence": "alpha"},
    {"f_divergence": "alpha", "alpha_divergence": 2.0},
    {"f_divergence": "alpha", "alpha_divergence": -1.0},
]


def make(name: str, **options: Any) -> Loss:
    schema = ConfigStore.instance().repo["schema"]["loss"][f"{name}.yaml"].node
    return LOSSES.build(OmegaConf.to_object(OmegaConf.merge(schema, options)))


def squared(side: TokenLogps, value: float = -1.0) -> TokenLogps:
    return TokenLogps(side.values, side.lengths, torch.full_like(side.values.detach(), value))


def pairs(*which: int) -> tuple[PairLogps, PairLogps]:
    """Policy, with summed squares, and reference of some of the pairs."""
    policy = PairLogps(squared(span(*(CHOSEN[i] for i in which))), squared(span(*(REJECTED[i] for i in which))))
    reference = span(*(REFERENCE_CHOSEN[i] for i in which)), span(*(REFERENCE_REJECTED[i] for i in which))
    return policy, PairLogps(*reference)


def grads(logps: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
    chosen, rejected = logps.chosen.values.grad, logps.rejected.values.grad
    assert chosen is not None
    assert rejected is not None
    return chosen, rejected


def whole(name: str, **options: Any) -> tuple[LossOutput, PairLogps]:
    policy, reference = pairs(0, 1, 2)
    out = make(name, **options)(policy, reference, 0.0, counts_of(policy))
    out.loss.backward()
    return out, policy


LN2 = math.log(2)
AT_REFERENCE = {
    "dpo": LN2,
    "dpo_hinge": 1.0,
    "dpo_robust": LN2,
    "dpo_norm": LN2,
    "ipo": 25.0,
    "exo_pair": -LN2 - (math.log(0.999) + math.log(0.001)) / 2,
    "discopop": LN2 / 2 + 0.5,
    "nca_pair": 2 * LN2,
    "bco_pair": 2 * LN2,
    "sppo_hard": 50.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "aot": LN2,
    "aot_unpaired": LN2,
}


@pytest.mark.parametrize("name", EVERY)
def test_a_policy_that_is_its_reference(name):
    for options in [{}, *(DIVERGENCES if name in OF_THE_DIFFERENCE else [])]:
        policy, _ = pairs(0, 1, 2)
        same = PairLogps(*(TokenLogps(s.values.detach(), s.lengths) for s in (policy.chosen, policy.rejected)))
        out = make(name, **options)(policy, same, 0.0, counts_of(policy))
        out.loss.backward()
        assert out.loss.item() == pytest.approx(AT_REFERENCE[name], rel=1e-14)
        assert all(torch.isfinite(g).all() for g in grads(policy))
        assert out.per_pair["rewards/margin"].abs().max() == 0


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 50])
def test_value_and_gradient_stay_finite(name, dtype, tokens):
    """All combinations of the extremes as the pairs of one batch; 50 tokens of -200 make log-ratios of 10,000."""
    extremes = [0.0, -1e-45, -1e-10, -1e-7, -200.0]
    grid = torch.tensor(list(itertools.product(extremes, repeat=4)), dtype=dtype)
    lengths = torch.full((len(grid),), tokens)
    for options in [*MODIFIERS, {"wpo": True}, *DIVERGENCES]:
        if ("wpo" in options and name in OF_THE_BATCH) or ("f_divergence" in options and name not in OF_THE_DIFFERENCE):
            continue
        columns = [grid[:, i].repeat_interleave(tokens).clone().requires_grad_() for i in range(4)]
        chosen, rejected, *reference = (TokenLogps(column, lengths) for column in columns)
        policy = PairLogps(squared(chosen), squared(rejected))
        out = make(name, **options)(policy, PairLogps(*reference), 0.0, counts_of(policy))
        out.loss.backward()
        assert math.isfinite(out.loss.item()), options
        assert all(torch.isfinite(g).all() for g in grads(policy)), options
        assert all(torch.isfinite(metric).all() for metric in out.per_pair.values()), options


@pytest.mark.parametrize("name", OF_THE_DIFFERENCE + OF_EACH_ANSWER)
@pytest.mark.parametrize("options", [*MODIFIERS, {"wpo": True}], ids=str)
def test_micro_batches_add_up_to_the_batch(name, options):
    loss = make(name, **options)
    out, policy = whole(name, **options)
    terms, chosen = dict.fromkeys(out.terms, 0.0), []
    total = 0.0
    for which in ([0, 2], [], [1]):
        part, reference = pairs(*which)
        share = loss(part, reference, 0.0, counts_of(policy))
        share.loss.backward()
        total += share.loss.item()
        terms = {term: terms[term] + value.item() for term, value in share.terms.items()}
        chosen.append(grads(part)[0])
    assert total == pytest.approx(out.loss.item(), rel=1e-14)
    assert terms == pytest.approx({term: value.item() for term, value in out.terms.items()}, rel=1e-14)
    again = torch.cat([chosen[0][:3], chosen[2], chosen[0][3:]])
    torch.testing.assert_close(again, grads(policy)[0], rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_micro_batch_adds_nothing(name):
    loss = make(name, nll_weight=0.5, ld_alpha=0.5, wpo=name not in OF_THE_BATCH)
    policy, reference = pairs()
    out = loss(policy, reference, 0.0, counts_of(pairs(0, 1)[0]))
    out.loss.backward()
    assert out.loss.item() == 0
    assert all(len(values) == 0 for values in out.per_pair.values())


def sums() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """beta = 0.1 times the log-ratio of the chosen and rejected answers, and the same per token."""
    (policy, reference) = pairs(0, 1, 2)
    u = [0.1 * (getattr(policy, s).sum() - getattr(reference, s).sum()).detach() for s in ("chosen", "rejected")]
    return u[0], u[1], u[0] / policy.chosen.lengths, u[1] / policy.rejected.lengths


SWAPPED = {  # loss of the swapped pairs less loss of the pairs, from u = beta w and v = u per token; mean over pairs
    "dpo": lambda c, r, vc, vr: c - r,
    "dpo_hinge": lambda c, r, vc, vr: 2 * (c - r),
    "dpo_robust": lambda c, r, vc, vr: (c - r) / 0.8,
    "dpo_norm": lambda c, r, vc, vr: vc - vr,
    "ipo": lambda c, r, vc, vr: 4 * 5 * 10 * (vc - vr),
    "exo_pair": lambda c, r, vc, vr: torch.tanh((c - r) / 2) * math.log(999),
    "nca_pair": lambda c, r, vc, vr: torch.log(torch.sigmoid(c) / torch.sigmoid(r)),
    "bco_pair": lambda c, r, vc, vr: c - r,
    "sppo_hard": lambda c, r, vc, vr: 4 * 5 * 10 * (c - r),
    "aot": lambda c, r, vc, vr: c - r,
    "aot_unpaired": lambda c, r, vc, vr: c - r,
}
BOTH = {  # where the sum of the two says more: sigmoid(x) + sigmoid(-x) = 1
    "apo_zero": lambda c, r: torch.full_like(c, 2.0),
    "apo_down": lambda c, r: torch.sigmoid(c) + torch.sigmoid(r) + 1,
    "discopop": lambda c, r: (
        -torch.log(torch.sigmoid(c - r)) * torch.sigmoid((r - c) / 0.05)
        - torch.log(torch.sigmoid(r - c)) * torch.sigmoid((c - r) / 0.05)
        + torch.exp(r - c) * torch.sigmoid((c - r) / 0.05)
        + torch.exp(c - r) * torch.sigmoid((r - c) / 0.05)
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_swapping_the_answers(name):
    policy, reference = pairs(0, 1, 2)
    back = PairLogps(policy.rejected, policy.chosen), PairLogps(reference.rejected, reference.chosen)
    loss, counts = make(name), counts_of(policy)
    there, swapped = loss(policy, reference, 0.0, counts), loss(*back, 0.0, counts)
    torch.testing.assert_close(there.per_pair["rewards/margin"], -swapped.per_pair["rewards/margin"], rtol=0, atol=0)
    assert (there.per_pair["rewards/accuracy"] + swapped.per_pair["rewards/accuracy"] == 1).all()
    if name in SWAPPED:
        found, wanted = swapped.loss - there.loss, SWAPPED[name](*sums()).mean()
    else:
        found, wanted = swapped.loss + there.loss, BOTH[name](*sums()[:2]).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)


def test_rewards_are_beta_times_the_log_ratio_of_the_whole_answer():
    chosen, rejected, *_ = sums()
    for name in EVERY:
        out, _ = whole(name)
        torch.testing.assert_close(out.per_pair["rewards/chosen"], chosen, rtol=1e-14, atol=0)
        torch.testing.assert_close(out.per_pair["rewards/rejected"], rejected, rtol=1e-14, atol=0)
        assert set(out.terms) == {"preference_loss"}


def test_what_the_losses_declare():
    for name in EVERY:
        loss = make(name)
        assert loss.needs_reference
        assert loss.weight_field is None
        assert loss.needs == frozenset()
        assert loss.scope is (Scope.batch if name in OF_THE_BATCH else Scope.pair)
    assert make("dpo", wpo=True).needs == {Need.log_squared}


def test_the_order_of_the_pairs_is_nothing_to_aot():
    for name in OF_THE_BATCH:
        policy, reference = pairs(2, 0, 1)
        shuffled = make(name)(policy, reference, 0.0, counts_of(policy))
        assert shuffled.loss.item() == pytest.approx(whole(name)[0].loss.item(), rel=1e-14)


def test_nll_is_a_mean_over_the_chosen_tokens():
    out, _ = whole("dpo", nll_weight=0.5)
    assert out.terms["nll_loss"].item() == pytest.approx((2.6 + 1.8 + 0.7) / 6, rel=1e-14)
    assert out.loss.item() == pytest.approx(out.terms["preference_loss"].item() + 0.5 * (5.1 / 6), rel=1e-14)


def test_wpo_weight_is_one_for_an_answer_as_likely_as_a_sample():
    likely = TokenLogps(torch.full((5,), -1.25), torch.tensor([2, 3]), torch.full((5,), -1.25))
    assert wpo_weight(likely).tolist() == [1.0, 1.0]
    unlikely = TokenLogps(torch.tensor([-2.0, -3.0]), torch.tensor([2]), torch.tensor([-1.0, -1.0]))
    assert wpo_weight(unlikely).item() == pytest.approx(math.exp(-1.5))


def test_ld_weighs_what_lies_past_the_shared_length():
    side = span([-1.0, -2.0, -4.0], [], [-8.0], [-16.0, -32.0])
    found = tail_weighed(side, torch.tensor([1, 0, 5, 0]), 0.5)
    assert found.values.tolist() == [-1.0, -1.0, -2.0, -8.0, -8.0, -16.0]
    for name in EVERY:  # 1 is the same as none at all
        assert whole(name, ld_alpha=1.0)[0].loss.item() == whole(name)[0].loss.item()


def test_alpha_reaches_the_forward_and_the_reverse_kl():
    w = torch.tensor([-3.0, -0.1, 0.0, 2.0], dtype=torch.float64)
    forward = divergence_score(w, FDivergence.forward_kl, 0.5, 80.0)
    torch.testing.assert_close(divergence_score(w, FDivergence.alpha, 0.0, 80.0), forward)
    torch.testing.assert_close(divergence_score(w, FDivergence.alpha, 1 - 2e-6, 80.0), w, rtol=1e-5, atol=0)
    assert divergence_score(w, FDivergence.alpha, 1.0, 80.0).tolist() == w.tolist()


def test_exponents_are_clamped_where_the_docstring_says():
    w = torch.tensor([-79.0, -81.0, -1e6], dtype=torch.float64)
    found = divergence_score(w, FDivergence.forward_kl, 0.5, 80.0)
    assert found.tolist() == pytest.approx([-math.expm1(79), -math.expm1(80), -math.expm1(80)], rel=1e-14)
    assert make("ipo").exponent_clamp == 40.0


@pytest.mark.parametrize(
    ("name", "options", "key", "reason"),
    [
        *((name, {"f_divergence": "js"}, "f_divergence", "cancels only") for name in OF_EACH_ANSWER + OF_THE_BATCH),
        *((name, {"wpo": True}, "wpo", "sorting") for name in OF_THE_BATCH),
        *((name, {"beta": 0.0}, "beta", "above 0") for name in EVERY),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing", "below 0.5"),
        ("dpo_robust", {"label_smoothing": 0.5}, "label_smoothing", "below 0.5"),
        ("exo_pair", {"label_smoothing": 0.0}, "label_smoothing", "above 0"),
        ("aot", {"label_smoothing": -0.1}, "label_smoothing", "at least 0"),
        ("dpo", {"ld_alpha": 1.1}, "ld_alpha", "at most 1"),
        ("dpo", {"nll_weight": -1.0}, "nll_weight", "at least 0"),
        ("dpo", {"alpha_divergence": math.nan}, "alpha_divergence", "finite"),
        ("discopop", {"tau": 1.5}, "tau", "at most 1"),
    ],
)
def test_refused_with_a_reason(name, options, key, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        make(name, **options)
    assert refused.value.key == key


@pytest.mark.parametrize("name", ["dpo_hinge", "dpo_norm", "ipo", "discopop", *OF_EACH_ANSWER])
def test_label_smoothing_only_where_the_formula_has_it(name):
    with pytest.raises(Exception, match="label_smoothing"):
        make(name, label_smoothing=0.1)
