"""Intervals over seeds and held-out pairs, against textbook formulae and made-up sweeps of which the truth is known."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy
import pytest
import scipy.stats
from sweeps.builder import make_pairs

from orpo_exp.sweeps.held_out import HeldOut, pair_part
from orpo_exp.sweeps.intervals import PairPart, ahead_of_one, critical, half_widths, residual, variance_of_mean
from orpo_exp.sweeps.statistics import Sample, estimate, leads

RNG = numpy.random.default_rng(0)
ACCURACY = (0.0, 1.0)
T = {freedom: scipy.stats.t.ppf(0.975, freedom) for freedom in (2, 39)}


def held_out(tmp_path, name, values, metric="rewards/accuracy", **given):
    """A run's values pair by pair, read from its file."""
    (tmp_path / name).mkdir()
    make_pairs(tmp_path / name, {metric: values}, **given)
    found = HeldOut.read(tmp_path / name / "pairs.parquet", 100).values(metric, float(numpy.mean(values)))
    assert found is not None
    return found


def sample(tmp_path, name, table, bounds=(None, None), **given):
    """A setting from (seeds, pairs) values."""
    pairs = {str(i): held_out(tmp_path, f"{name}{i}", of, **given) for i, of in enumerate(table)}
    return Sample({seed: float(of.values.mean()) for seed, of in pairs.items()}, pairs, bounds)


def test_the_variance_of_a_mean_is_the_textbooks():
    values = RNG.normal(size=30)
    alone = numpy.arange(30)
    assert variance_of_mean(values, alone) == pytest.approx(values.var(ddof=1) / 30)
    # clusters of one size are their means, of which so many are independent
    assert variance_of_mean(values, alone[::5]) == pytest.approx(values.reshape(6, 5).mean(1).var(ddof=1) / 6)
    # 7 pairs for, 3 against, one of each added: the variance of Bonett and Price (2012), with n - 1 below
    outcomes = numpy.array([1.0] * 7 + [-1.0] * 3 + [0.0] * 20)
    for_it, against, n = 8 / 32, 4 / 32, 32
    expected = (for_it + against - (for_it - against) ** 2) / (n - 1)
    assert variance_of_mean(outcomes, alone, (-1.0, 1.0)) == pytest.approx(expected)
    both = numpy.stack([values, outcomes])
    assert variance_of_mean(both, alone, (-1.0, 1.0))[1] == pytest.approx(expected)


def test_the_residual_is_that_of_a_two_way_table():
    table = RNG.normal(size=(4, 3))
    columns = [numpy.ravel(numpy.ones_like(table))]
    columns += [numpy.ravel(numpy.eye(4)[i][:, None] * numpy.ones(3)) for i in range(3)]
    columns += [numpy.ravel(numpy.ones(4)[:, None] * numpy.eye(3)[j]) for j in range(2)]
    (left,) = numpy.linalg.lstsq(numpy.stack(columns, 1), table.ravel(), rcond=None)[1]
    assert residual(table) == pytest.approx(left / 6)


def test_the_quantiles_of_the_range_are_a_printed_tables():
    # 5% points of the studentized range, as tables of Tukey's test print them
    for settings, freedom, printed in ((3, 10, 3.877), (6, 20, 4.445), (4, 60, 3.737)):
        assert critical(settings, freedom) == pytest.approx(printed / math.sqrt(2), abs=5e-4)
    assert critical(2, 7) == critical(1, 7) == pytest.approx(scipy.stats.t.ppf(0.975, 7))


def test_pairs_that_all_seeds_share_are_a_part_of_their_own(tmp_path):
    table = RNG.normal(size=(3, 40)) + RNG.normal(size=40)
    found = estimate(sample(tmp_path, "a", table))
    seeds, pairs = table.mean(1), table.mean(0)
    from_seeds = T[2] * seeds.std(ddof=1) / math.sqrt(3)
    from_pairs = T[39] * pairs.std(ddof=1) / math.sqrt(40)
    assert found.high - found.mean == pytest.approx(math.hypot(from_seeds, from_pairs))
    assert (found.n, found.pairs, found.method) == (3, 40, "Student's t, 3 seeds and 40 pairs")


def test_seeds_with_pairs_of_their_own_are_compared_as_they_are(tmp_path):
    first, second = RNG.normal(size=(2, 3, 40)) + RNG.normal(size=(2, 3, 1))
    runs = []
    for name, table in (("a", first), ("b", second)):
        pairs = {
            str(i): held_out(tmp_path, f"{name}{i}", of, rows=range(40 * i, 40 * i + 40)) for i, of in enumerate(table)
        }
        runs.append(Sample({seed: float(of.values.mean()) for seed, of in pairs.items()}, pairs))
    (lead,) = leads(runs[0], runs[1:], 1.0)
    seeds = (first - second).mean(1)
    half = T[2] * seeds.std(ddof=1) / math.sqrt(3)
    assert (lead.low, lead.high) == pytest.approx((seeds.mean() - half, seeds.mean() + half))


def test_one_seed_has_the_interval_of_its_pairs(tmp_path):
    first, second = RNG.normal(size=(2, 40)) + RNG.normal(size=40)
    best, other = (sample(tmp_path, name, [of]) for name, of in (("a", first), ("b", second)))
    (lead,) = leads(best, [other], 1.0)
    expected = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (lead.low, lead.high) == pytest.approx(tuple(expected))
    assert (lead.n, lead.pairs, lead.method) == (1, 40, "t, one seed and 40 pairs")
    # a single run each, of another seed, on other pairs
    there = held_out(tmp_path, "there", second, rows=range(100, 140))
    (lead,) = leads(best, [Sample({"7": float(second.mean())}, {"7": there})], 1.0)
    half = T[39] * math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 40)
    assert lead.high - lead.mean == pytest.approx(half)
    assert not lead.common


def test_overlapping_sets_count_as_much_as_they_overlap(tmp_path):
    # of four pairs each, two seeds share two
    sets = [(0, 1, 2, 3), (2, 3, 4, 5)]
    shared = [held_out(tmp_path, str(i), RNG.normal(size=4), rows=rows) for i, rows in enumerate(sets)]
    part = pair_part(shared)
    assert part.shared == 0.5
    known = {}
    for run, rows in zip(shared, sets, strict=True):
        of = dict(zip(run.keys.tolist(), run.values.tolist(), strict=True))
        for key in of:
            known.setdefault(key, []).append(of[key])
        assert len(of) == len(rows)
    means = numpy.array([numpy.mean(of) for of in known.values()])
    assert len(means) == 6
    assert part.between == pytest.approx(means.var(ddof=1) / 6 * 6 / 4)  # as if it were of the four that a seed has


def test_pairs_with_one_prompt_are_one(tmp_path):
    values = numpy.repeat(RNG.normal(size=10), 4)
    found = estimate(sample(tmp_path, "a", [values], prompts=[str(i // 4) for i in range(40)]))
    half = scipy.stats.t.ppf(0.975, 9) * values[::4].std(ddof=1) / math.sqrt(10)
    assert found.high - found.mean == pytest.approx(half)


def test_agreement_is_no_certainty(tmp_path):
    right = numpy.ones((2, 40))
    alike = [sample(tmp_path, name, right, ACCURACY) for name in "ab"]
    found = estimate(alike[0])
    assert found.mean == 1.0
    # two right and two wrong ones added to each side (Agresti and Coull), seeds that do not vary
    proportion = 42 / 44
    assert found.mean - found.low == pytest.approx(T[39] * math.sqrt(proportion * (1 - proportion) / 43))
    assert found.high == 1.0
    (lead,) = leads(alike[0], alike[1:], 1.0)
    assert lead.high - lead.mean == pytest.approx(T[39] * math.sqrt(2 / 42 / 41))
    assert not lead.clear


def test_a_mean_over_tokens_varies_as_the_jackknife_says(tmp_path):
    tokens = RNG.integers(5, 60, size=60)
    losses = tokens * (2.0 + RNG.normal(size=60) / 3)
    reported = float(losses.sum() / tokens.sum())
    columns = {"chosen_tokens": tokens, "chosen_logp": -losses, "rewards/margin": tokens * 0.5}
    (tmp_path / "run").mkdir()
    make_pairs(tmp_path / "run", columns)
    of = HeldOut.read(tmp_path / "run" / "pairs.parquet", 100)
    values = of.values("nll_loss", reported)
    assert values.values.mean() == pytest.approx(reported)
    left_out = (losses.sum() - losses) / (tokens.sum() - tokens)
    jackknife = 59 / 60 * ((left_out - left_out.mean()) ** 2).sum()
    assert variance_of_mean(values.values, numpy.arange(60)) == pytest.approx(jackknife, rel=0.03)
    assert of.values("loss", reported + 0.1) is None
    assert of.values("rewards/margin", 1.0) is None  # the file's are not what was reported
    assert HeldOut.read(tmp_path / "run" / "pairs.parquet", 99) is None


def test_the_lower_end_is_for_all_rivals_and_the_other_way_round_where_low_is_good():
    values = numpy.array([[0.9, 0.8, 0.85], [0.7, 0.75, 0.72], [0.5, 0.66, 0.6], [0.65, 0.6, 0.7]])
    samples = [Sample(dict(zip("012", of.tolist(), strict=True))) for of in values]
    found = leads(samples[0], samples[1:], 1.0)
    turned = leads(*[Sample({k: -v for k, v in s.values.items()}) for s in samples[:1]],
                   [Sample({k: -v for k, v in s.values.items()}) for s in samples[1:]], -1.0)  # fmt: skip
    for lead, other in zip(found, turned, strict=True):
        assert (lead.mean, lead.low, lead.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert found[0].mean - found[0].low > found[0].high - found[0].mean
    common = 2 * residual(values)
    difference = values[0] - values[1]
    variance = max((2.5 * common + 2 * difference.var(ddof=1)) / 4.5, difference.var(ddof=1))
    below = scipy.stats.studentized_range.ppf(0.95, 4, 3) / math.sqrt(2) * math.sqrt(variance / 3)
    assert found[0].mean - found[0].low == pytest.approx(below)


def test_many_sweeps_at_a_time_are_each_alone():
    variance, common = RNG.random(5), RNG.random(5)
    part = PairPart(RNG.random(5), RNG.random(5), 0.4, 30)
    together = half_widths(variance, 3, part, 4, common=common)
    for i in range(5):
        alone = half_widths(variance[i], 3, PairPart(part.within[i], part.between[i], 0.4, 30), 4, common=common[i])
        assert [of[i] for of in together] == pytest.approx(list(alone))


@pytest.fixture(scope="module")
def simulation():
    path = Path(__file__).parents[2] / "benchmarks" / "intervals.py"
    spec = importlib.util.spec_from_file_location("intervals_benchmark", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("sets", ["common", "overlapping"])
def test_made_up_sweeps_are_told_as_they_are_and_were_not_before(simulation, sets):
    cell = simulation.Cell(3, 5, 90, sets, spread=0.0)
    row, passes = simulation.tried(cell, 300, numpy.random.default_rng(1))
    assert passes, row
    covers, wrong, covered_before, wrong_before = map(float, row[1:5])
    assert covers > 95
    assert wrong < 5
    assert covered_before < 90
    assert wrong_before > 20


# Dunnett's table of 1955, one-sided, 5%: of 1 to 5 settings beside the given one
DUNNETT = {5: (2.02, 2.44, 2.68, 2.85, 2.98), 10: (1.81, 2.15, 2.34, 2.47, 2.56), 20: (1.72, 2.03, 2.19, 2.30, 2.39)}


@pytest.mark.parametrize("freedom", DUNNETT)
def test_the_lead_over_a_given_setting_is_dunnetts(freedom):
    found = [ahead_of_one(others + 1, freedom, 0.05) for others in range(1, 6)]
    assert found == pytest.approx(DUNNETT[freedom], abs=0.006)


@pytest.mark.parametrize("freedom", [1, 2, 4.5, 300])
def test_of_two_settings_it_is_students_t(freedom):
    assert ahead_of_one(2, freedom, 0.025) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-4)
