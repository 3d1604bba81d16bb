import pytest
from sweeps.builder import make_run, make_sweep

from orpo_exp.sweeps.conditions import canonical
from orpo_exp.sweeps.groups import ordered
from orpo_exp.sweeps.results import read_results


def config(loss="orpo", seed=0, lam=0.1, **values):
    own = {"lam": lam} if loss == "orpo" else {"beta": 0.1}
    return {
        "loss": own, "seed": seed, "train": {"max_steps": 10}, "resume": "auto", "tracker": {},
        "choices": {"loss": loss, "model": "tiny", "tracker": f"of {seed}"},
    } | values  # fmt: skip


def runs(folder, *configs):
    for i, one in enumerate(configs):
        make_run(folder / f"run{i}", {"rewards/accuracy": 0.1 * i}, one, seed=one["seed"])
    return folder


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"), ("1e-1", "0.1"), ("1.0", "1"), (1, "1"), ("'a'", "a"), ("orpo", "orpo"), (None, "null"),
        ("null", "null"), (True, "true"), ("True", "true"), ("[a, 1]", '["a", 1]'), (["a", 1], '["a", 1]'),
        ("1e-05", "1e-05"), (1e-5, "1e-05"), ("nan", "nan"), ("2147483647", "2147483647"), ("", ""),
    ],
)  # fmt: skip
def test_a_value_is_the_same_however_it_is_written(value, text):
    assert canonical(value) == text


def test_numbers_are_ordered_by_size_and_words_as_they_come():
    assert ordered(["10", "sft", "9", "0.5", "orpo", "9"]) == ["sft", "orpo", "0.5", "9", "10"]


def test_swept_keys_are_found_from_the_configurations(tmp_path):
    found = read_results([runs(tmp_path, *(config(lam=lam, seed=seed) for lam in (0, 0.5) for seed in (0, 1)))])
    assert (found.keys, found.along) == (["loss.lam"], [])
    assert [(g.setting, [p.seed for p in g.points]) for g in found.groups] == [
        ({"loss.lam": "0"}, ["0", "1"]),
        ({"loss.lam": "0.5"}, ["0", "1"]),
    ]


def test_a_choice_is_a_key_and_what_follows_from_it_is_not(tmp_path):
    found = read_results([runs(tmp_path, *(config(loss, seed) for loss in ("orpo", "dpo") for seed in (0, 1)))])
    assert (found.keys, found.along) == (["loss"], ["loss.lam", "loss.beta"])
    assert [g.setting["loss"] for g in found.groups] == ["orpo", "dpo"]


def test_one_seed_for_each_value_is_still_a_sweep_of_that_value(tmp_path):
    found = read_results([runs(tmp_path, config(lam=0.1, seed=0), config(lam=0.2, seed=1))])
    assert found.keys == ["loss.lam"]


def test_where_things_are_kept_is_no_condition(tmp_path):
    found = read_results(
        [runs(tmp_path, config(), config(seed=1, resume="never", tracker={"wandb": {"mode": "online"}}))]
    )
    assert found.keys == []
    assert [len(g.points) for g in found.groups] == [2]


def sweep(folder, points, configs):
    for place, point, one in zip(make_sweep(folder, points), points, configs, strict=True):
        make_run(place, {"rewards/accuracy": 0.5}, one, seed=int(point["seed"]))
    return folder


def test_a_setting_that_changed_between_two_orders_of_a_sweep_splits_its_points(tmp_path):
    points = [{"loss.lam": lam, "seed": "0"} for lam in ("0", "0.0")]
    folder = sweep(tmp_path / "s", points, [config(lam=0), config(lam=0, train={"max_steps": 20})])
    found = read_results([folder])
    assert found.keys == ["loss.lam", "train.max_steps"]
    assert [g.name for g in found.groups] == ["loss.lam=0, train.max_steps=10", "loss.lam=0, train.max_steps=20"]
    assert found.repeated == []


def test_sweeps_over_different_keys_stand_beside_one_another(tmp_path):
    lam = [{"loss.lam": value, "seed": "0"} for value in ("0.1", "1.0")]
    loss = [{"loss": value, "seed": "0"} for value in ("orpo", "dpo")]
    a = sweep(tmp_path / "a", lam, [config(lam=0.1), config(lam=1.0)])
    b = sweep(tmp_path / "b", loss, [config("orpo", lam=0.25), config("dpo")])
    found = read_results([a, b])
    assert found.keys == ["loss.lam", "loss"]
    assert [tuple(g.setting.values()) for g in found.groups] == [
        ("(none)", "dpo"), ("0.1", "orpo"), ("0.25", "orpo"), ("1", "orpo"),
    ]  # fmt: skip


def test_a_configuration_cut_short_does_not_hide_the_sweep(tmp_path, caplog):
    folder = sweep(tmp_path / "s", [{"loss.lam": "0", "seed": "0"}], [config()])
    (folder / "loss.lam=0,seed=0" / "config.yaml").write_text("loss: {lam: 0")
    found = read_results([folder])
    assert [g.name for g in found.groups] == ["loss.lam=0"]
    assert "config.yaml is passed over" in caplog.text


def kept(loss="orpo", seed=0, lam=0.1, **values):
    """What result.json says under "settings" of a run with this config.yaml."""
    found = config(loss, seed, lam, **values)
    choices = {"loss": loss, "model": "tiny"}
    return {k: v for k, v in found.items() if k not in ("resume", "tracker", "processes")} | {"choices": choices}


def test_conditions_are_what_result_json_says_can_change_a_number(tmp_path):
    """config.yaml knows of keys that change nothing, and is not asked where result.json tells."""
    for i, keeping in enumerate((1, 2)):
        content = config(seed=i, train={"max_steps": 10, "keep_best": keeping})
        make_run(tmp_path / str(i), {"rewards/accuracy": 0.5}, content, seed=i, settings=kept(seed=i))
    found = read_results([tmp_path])
    assert (found.keys, found.along) == ([], [])
    assert [[p.seed for p in g.points] for g in found.groups] == [["0", "1"]]


def test_what_choices_say_comes_before_what_follows_from_them(tmp_path):
    for i, loss in enumerate(("orpo", "dpo")):
        make_run(tmp_path / str(i), {"rewards/accuracy": 0.1 * i}, config(loss), settings=kept(loss))
    found = read_results([tmp_path])
    assert (found.keys, found.along) == (["loss"], ["loss.lam", "loss.beta"])


def test_beside_newer_runs_older_ones_are_told_apart_by_the_same_keys(tmp_path):
    old = config(seed=0, train={"max_steps": 10, "keep_best": 1}, processes=2)
    make_run(tmp_path / "old", {"rewards/accuracy": 0.5}, old)
    make_run(tmp_path / "new", {"rewards/accuracy": 0.5}, config(seed=1), seed=1, settings=kept(seed=1))
    found = read_results([tmp_path])
    assert found.keys == []
    assert [[p.seed for p in g.points] for g in found.groups] == [["1", "0"]]
    make_run(tmp_path / "other", {"rewards/accuracy": 0.5}, config(lam=1.0), settings=kept(lam=1.0))
    assert read_results([tmp_path]).keys == ["loss.lam"]


def test_a_swept_key_that_changes_no_number_still_is_a_condition(tmp_path):
    points = [{"processes": number, "seed": "0"} for number in ("1", "2")]
    for place, point in zip(make_sweep(tmp_path, points), points, strict=True):
        make_run(place, {"rewards/accuracy": 0.5}, config(processes=int(point["processes"])), settings=kept())
    assert [g.name for g in read_results([tmp_path]).groups] == ["processes=1", "processes=2"]
