"""Several data sets as one."""

import json
from collections import Counter

import pytest
import torch
from support import order_of

from orpo_exp import experiment
from orpo_exp.data import DATA
from orpo_exp.data.mix import drawn
from orpo_exp.schema import ConfigError


def written(path, name, count, first=0):
    places = range(first, first + count)
    rows = [{"prompt": f"{i}?", "chosen": f"{name} yes {i}", "rejected": f"{name} no"} for i in places]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def two(tmp_path):
    """12 pairs, and 30 of which 6 have the same prompts."""
    written(tmp_path / "a.jsonl", "a", 12)
    written(tmp_path / "b.jsonl", "b", 30, first=6)
    adds = (f"+data@data.sources.{name}=json" for name in "ab")
    return ["+experiment=orpo", "model=tiny", "data=mix", *adds, *(f"data.sources.{n}.path={n}.jsonl" for n in "ab")]


def load(*overrides, seed=0):
    return DATA.build(order_of(*overrides).config.data).load(seed)


def sides(data):
    return Counter(pair.chosen[0] for pair in data.train), Counter(pair.chosen[0] for pair in data.held_out)


def test_all_pairs_of_all_sources_and_no_prompt_of_one_is_tested_in_another(two):
    for seed in range(5):
        data = load(*two, "data.eval_size=0.2", seed=seed)
        train, held_out = sides(data)
        assert train + held_out == {"a": 12, "b": 30}
        assert held_out.total() in (8, 9)
        assert not {pair.prompt for pair in data.train} & {pair.prompt for pair in data.held_out}
        assert len({pair.row for pair in [*data.train, *data.held_out]}) == 42
    assert data.form == "trl (a), trl (b)"


@pytest.mark.parametrize(
    ("weights", "repeat", "expected"),
    [
        ([1, 1], False, [10, 10]),
        ([1, 3], False, [10, 30]),
        ([1, 6], False, [5, 30]),
        ([1, 1], True, [30, 30]),
        ([5, 3], True, [50, 30]),
        ([1, 6], True, [10, 60]),
    ],
)
def test_weights_are_shares_of_an_epoch(weights, repeat, expected):
    of_sources = [torch.arange(10), torch.arange(10, 40)]
    chosen = drawn(of_sources, weights, repeat, seed=0)
    times = [Counter(place for place in chosen.tolist() if place in set(of.tolist())) for of in of_sources]
    assert [of.total() for of in times] == expected
    assert all(max(of.values()) - (min(of.values()) if repeat else 0) <= 1 for of in times)
    if repeat:
        assert [len(of) for of in times] == [10, 30]
    assert torch.equal(chosen, drawn(of_sources, weights, repeat, seed=0))
    if expected[0] % 10:
        assert not torch.equal(chosen, drawn(of_sources, weights, repeat, seed=1))


def test_proportions_on_the_command_line_leave_the_same_pairs_held_out(two):
    plain, weighted = (load(*two, "data.eval_size=6", *more) for more in ([], ["+data.weights={a: 1, b: 1}"]))
    assert list(plain.held_out) == list(weighted.held_out)
    train = sides(weighted)[0]
    assert train["a"] == train["b"] == sides(plain)[0]["a"]


def test_a_source_that_names_evaluation_data_brings_them_and_equal_pairs_are_used_once(two, tmp_path):
    written(tmp_path / "eval.jsonl", "b", 5, first=6)
    data = load(*two, "data.sources.b.eval_path=eval.jsonl", "data.sources.a.rows=8", "data.deduplicate=true")
    assert sides(data) == ({"a": 8, "b": 25}, {"b": 5})
    assert data.skipped == {"the same pair again": [12 + i for i in range(5)]}


def test_skipped_rows_say_which_source_they_are_of(two, tmp_path):
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"prompt": "x", "chosen": "", "rejected": "b"}\n')
    assert load(*two).skipped == {"a: empty chosen": [12]}


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["~data.sources.b", "~data.sources.a"], r"data\.sources"),
        (["data.sources.a.max_length=512"], r"data\.sources\.a\.max_length"),
        (["data.sources.a.eval_size=7"], r"data\.sources\.a\.eval_size"),
        (["+data.weights.a=1"], r"data\.weights.*one for each of a, b"),
        (["+data.weights={a: 1, b: 0}"], r"data\.weights.*above 0"),
        (["data.repeat=true"], r"data\.repeat"),
        (["+data@data.sources.c=toy"], r"data\.sources\.c"),
    ],
)
def test_what_makes_no_sense_is_refused(two, overrides, key):
    with pytest.raises(ConfigError, match=key):
        order_of(*two, *overrides)


def test_a_source_that_is_not_there_is_named(two):
    with pytest.raises(ConfigError, match=r"data\.sources\.b\.path"):
        load(*two, "data.sources.b.path=c.jsonl")


def test_it_trains_from_the_command_line(two, run, monkeypatch):
    monkeypatch.setattr(experiment, "draw_plots", lambda folder: None)
    folder = run(
        *two, "+data.weights={a: 2, b: 1}", "data.repeat=true", "train.global_batch_size=4", "train.max_steps=2",
        "train.samples=1", "train.sample_tokens=2", "tracker=[]",
    )  # fmt: skip
    assert "trl (a), trl (b)" in (folder / "run.log").read_text()
