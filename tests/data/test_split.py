"""Which pairs are trained on, against the same by hand."""

import json
import random

import pytest
import torch

from orpo_exp.data.files import JsonFiles
from orpo_exp.data.split import first_of_each, hold_out, subset
from orpo_exp.data.toy import Toy
from orpo_exp.schema import ConfigError

LETTERS = "aB\u00e9\u4e2d\ue000\U0001f642\x00 "


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(prompt, chosen="yes", rejected="no"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def random_rows(count, seed):
    rng = random.Random(seed)

    def prompt():
        text = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 3))) + "?"
        return text if rng.random() < 0.5 else [{"role": "user", "content": text}]

    return [row(prompt(), f"a{i}", f"b{i}") for i in range(count)]


def held_out_by_hand(rows, wanted, seed):
    """Whole prompts in the order that the seed gives them, until there are enough pairs."""
    prompts = [r["prompt"] if isinstance(r["prompt"], str) else str(tuple(r["prompt"])) for r in rows]
    order = sorted(set(prompts))
    random.Random(seed).shuffle(order)
    held = []
    for prompt in order:
        if len(held) < wanted:
            held += [i for i, of in enumerate(prompts) if of == prompt]
    return sorted(held)


@pytest.mark.parametrize("seed", range(4))
def test_held_out_are_whole_prompts_in_the_order_of_their_characters_shuffled(tmp_path, seed):
    rows = random_rows(150, seed)
    for eval_size, wanted in ((0.1, 15), (40, 40), (0.001, 1)):
        config = JsonFiles.Config(path=written(tmp_path / "rows.jsonl", rows), eval_size=eval_size)
        data = JsonFiles(config).load(seed)
        held = held_out_by_hand(rows, wanted, seed)
        assert [pair.row for pair in data.held_out] == held
        assert [pair.row for pair in data.train] == [i for i in range(150) if i not in held]


@pytest.mark.parametrize(("test_size", "wanted"), [(0.2, 30), (25, 25)])
def test_the_test_is_drawn_after_the_held_out_pairs_which_stay_what_they_are(tmp_path, test_size, wanted):
    rows = random_rows(150, 7)
    config = JsonFiles.Config(path=written(tmp_path / "rows.jsonl", rows), eval_size=0.1, test_size=test_size)
    data = JsonFiles(config).load(3)
    held = held_out_by_hand(rows, 15, 3)
    left = [i for i in range(150) if i not in held]
    tested = [left[i] for i in held_out_by_hand([rows[i] for i in left], wanted, "3 test")]
    assert [pair.row for pair in data.held_out] == held
    assert [pair.row for pair in data.test] == tested
    assert [pair.row for pair in data.train] == [i for i in left if i not in tested]
    prompts = [{str(pair.prompt) for pair in of} for of in (data.train, data.held_out, data.test)]
    assert not prompts[2] & (prompts[0] | prompts[1])


def test_test_pairs_of_their_own_are_used_before_all_where_each_is_used_once(tmp_path):
    train, evaluation, test = (
        written(tmp_path / f"{name}.jsonl", [row(prompt) for prompt in prompts])
        for name, prompts in {"train": "abcd", "eval": "cde", "test": "de"}.items()
    )
    config = JsonFiles.Config(path=train, eval_path=evaluation, test_path=test, deduplicate=True)
    data = JsonFiles(config).load(0)
    assert [[pair.prompt for pair in of] for of in (data.train, data.held_out, data.test)] == [
        ["a", "b"], ["c"], ["d", "e"],
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="null beside test_path"):
        JsonFiles.Config(path=train, test_path=test, test_size=0.1)
    drawn = JsonFiles(JsonFiles.Config(path=train, eval_path=evaluation, test_size=2)).load(0)
    assert len(drawn.train) == 2
    assert {pair.prompt for pair in drawn.train} | {pair.prompt for pair in drawn.test} == set("abcd")


def test_the_toy_tasks_of_the_test_are_others_and_change_nothing():
    plain, tested = Toy(Toy.Config(eval_pairs=20)).load(5), Toy(Toy.Config(eval_pairs=20, test_pairs=10)).load(5)
    assert tested.held_out == plain.held_out
    assert plain.test == []
    assert len({pair.prompt for pair in [*tested.held_out, *tested.test]}) == 30


def test_another_seed_holds_out_others_and_nothing_to_train_on_is_refused():
    prompts = torch.arange(60) // 3
    train, held = hold_out(prompts, "data.eval_size", 0.2, len(prompts), seed=0)
    assert (len(train), len(held)) == (48, 12)
    assert not torch.equal(hold_out(prompts, "data.eval_size", 0.2, len(prompts), seed=1)[1], held)
    with pytest.raises(ConfigError, match=r"60 pairs with 20 prompts"):
        hold_out(prompts, "data.eval_size", 60, len(prompts), seed=0)


def test_the_first_of_equal_ones():
    rng = random.Random(0)
    numbers = [(rng.randrange(-3, 3), rng.randrange(-3, 3)) for _ in range(300)]
    expected = [numbers.index(of) == i for i, of in enumerate(numbers)]
    assert first_of_each(torch.tensor(numbers)).tolist() == expected
    assert first_of_each(torch.zeros(0, 2, dtype=torch.int64)).tolist() == []


def test_equal_pairs_are_used_once_and_none_that_is_evaluated_on_is_trained_on(tmp_path):
    rows = [row("a"), row("b"), row("a"), row("a", "other"), row("c"), row("ay", "es"), row("e")]
    path, evaluation = written(tmp_path / "t.jsonl", rows), written(tmp_path / "e.jsonl", [row("c"), row("c")])
    config = JsonFiles.Config(path=path, eval_path=evaluation, deduplicate=True)
    data = JsonFiles(config).load(0)
    assert [pair.row for pair in data.train] == [0, 1, 3, 5, 6]
    assert [pair.row for pair in data.held_out] == [0]
    again = "the same pair again"
    assert data.skipped == {again: [2, 4], f"in the evaluation data: {again}": [1]}
    apart = JsonFiles(JsonFiles.Config(path=path, deduplicate=True, eval_size=1)).load(0)
    assert (apart.size, len(apart.held_out), apart.skipped) == (
        6 - len(apart.held_out),
        len(apart.held_out),
        {again: [2]},
    )


def test_some_of_the_pairs_are_drawn_by_the_seed(tmp_path):
    path = written(tmp_path / "rows.jsonl", random_rows(100, 0))

    def rows(seed, of):
        data = JsonFiles(JsonFiles.Config(path=path, eval_size=5, rows=of)).load(seed)
        return sorted(pair.row for pair in [*data.train, *data.held_out])

    assert rows(0, None) == list(range(100))
    assert len(rows(0, 0.2)) == len(rows(0, 20)) == 20
    assert rows(0, 20) == rows(0, 20) != rows(1, 20)
    assert rows(0, 1000) == list(range(100))
    assert subset(10, 0.01, seed=0).numel() == 1


def test_a_split_of_its_own_holds_all_seeds_to_the_same_pairs(tmp_path):
    path = written(tmp_path / "rows.jsonl", random_rows(100, 0))

    def held(seed, **settings):
        return [pair.row for pair in JsonFiles(JsonFiles.Config(path=path, **settings)).load(seed).held_out]

    assert held(0) != held(1)
    assert held(0, split_seed=1) == held(5, split_seed=1) == held(1)
    first, second = (Toy(Toy.Config(eval_pairs=20, split_seed=1)).load(seed) for seed in (0, 5))
    assert first.held_out == second.held_out == Toy(Toy.Config(eval_pairs=20)).load(1).held_out
    assert first.train[0] != second.train[0]
