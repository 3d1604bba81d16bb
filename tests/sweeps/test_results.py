import pytest
from sweeps.builder import make_run, make_sweep

from orpo_exp.sweeps.results import canonical, ordered, read_results


def config(loss="orpo", seed=0, lam=0.1, **values):
    own = {"lam": lam} if loss == "orpo" else {"beta": 0.1}
    return {
        "loss": own, "seed": seed, "train": {"max_steps": 10}, "resume": "auto", "tracker": {},
        "choices": {"loss": loss, "model": "tiny"},
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
