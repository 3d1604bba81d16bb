"""Races: who is set aside, that a decision is made once, and that what goes on does so bit for bit."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import numbers
from sweeps.builder import DECLARED, make_run, make_sweep

from orpo_exp.cli import main
from orpo_exp.composition import check, compose
from orpo_exp.runs.order import RunOrder, rung_step
from orpo_exp.runs.states import State, read_result
from orpo_exp.sweeps.decisions import latest_decisions
from orpo_exp.sweeps.racing import Race, RaceTurn
from orpo_exp.sweeps.results import read_results
from orpo_exp.sweeps.summary import write_summary

# accuracy at step 25 and 50 of 100, by lambda and seed: one far behind early, one later, two never
HALF = {"0": (0.50, 0.51, 0.49), "0.1": (0.79, 0.80, 0.81), "0.5": (0.80, 0.79, 0.81), "1.0": (0.60, 0.80, 0.70)}
LATER = {"0.1": (0.90, 0.91, 0.89), "0.5": (0.70, 0.71, 0.69), "1.0": (0.85, 0.95, 0.88)}
NAMES = [f"loss.lam={lam},seed={seed}" for lam in HALF for seed in range(3)]


def waiting(folder: Path) -> Path:
    """A sweep whose points have all come to step 25."""
    points = [{"loss.lam": lam, "seed": str(seed)} for lam in HALF for seed in range(3)]
    for place, point in zip(make_sweep(folder, points), points, strict=True):
        seed = int(point["seed"])
        at = [{"step": 0, "rewards/accuracy": 0.5}, {"step": 25, "rewards/accuracy": HALF[point["loss.lam"]][seed]}]
        make_run(place, {}, evaluations=at, declared=DECLARED, seed=seed, status="waiting", steps=25)
    return folder


def gone_on(folder: Path, step: int = 50) -> None:
    for lam, seeds in LATER.items():
        for seed, value in enumerate(seeds):
            place = folder / f"loss.lam={lam},seed={seed}"
            with (place / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "split": "eval", "time": 0.0, "rewards/accuracy": value}) + "\n")
            result = json.loads((place / "result.json").read_text())
            (place / "result.json").write_text(json.dumps(result | {"steps": step}))


def race(folder: Path, names: list[str] = NAMES) -> Race:
    return Race(folder, tuple(names), (0.25, 0.5))


def states(folder: Path) -> dict[str, State]:
    return {point.folder.name: point.state for point in read_results([folder]).points}


def test_settings_that_are_clearly_behind_are_set_aside_with_all_their_seeds(tmp_path):
    folder = waiting(tmp_path / "s")
    (first,) = race(folder).decided(1)
    assert sorted(first.set_aside) == [f"loss.lam=0,seed={seed}" for seed in range(3)]
    assert [(of.setting["loss.lam"], of.out) for of in first.standings] == [
        ("0.1", False), ("0.5", False), ("1", False), ("0", True),
    ]  # fmt: skip
    assert {name for name, state in states(folder).items() if state is State.set_aside} == set(first.set_aside)
    why = read_result(folder / "loss.lam=0,seed=1")["error"]
    assert why.startswith("after 0.25 of the steps rewards/accuracy is 0.5000, behind loss.lam=0.1 by 0.3000 [")

    gone_on(folder)
    _, second = race(folder).decided(2)
    assert sorted(second.set_aside) == [f"loss.lam=0.5,seed={seed}" for seed in range(3)]
    assert "loss.lam=0," not in str(second.standings), "what is out is not looked at again"


def test_a_decision_is_made_once(tmp_path):
    folder = waiting(tmp_path / "s")
    before = race(folder).decided(1)
    gone_on(folder, step=25)  # other numbers of the same step
    assert race(folder).decided(1) == before == race(folder).made() == latest_decisions(folder)
    fewer = race(folder, NAMES[3:])  # another race, and a decision of its own
    assert fewer.made() == []
    assert sorted(fewer.decided(1)[0].set_aside) == [f"loss.lam=0.5,seed={seed}" for seed in range(3)]


def test_what_was_cut_off_while_it_was_decided_is_decided_again(tmp_path, monkeypatch):
    folder = waiting(tmp_path / "s")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr("orpo_exp.sweeps.racing.write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            race(folder).decided(1)
    assert race(folder).made() == []
    assert len(race(folder).decided(1)[0].set_aside) == 3


def test_without_two_seeds_nothing_is_set_aside(tmp_path):
    folder = waiting(tmp_path / "s")
    for seed in (1, 2):
        (folder / f"loss.lam=0,seed={seed}" / "metrics.jsonl").write_text("")  # failed at once
    (first,) = race(folder).decided(1)
    assert first.set_aside == {}
    assert [of.seeds for of in first.standings] == [3, 3, 3, 1]


def test_completed_points_are_compared_and_stay_completed(tmp_path):
    folder = waiting(tmp_path / "s")
    place = folder / "loss.lam=0,seed=0"
    result = json.loads((place / "result.json").read_text())
    (place / "result.json").write_text(json.dumps(result | {"status": "completed", "steps": 100}))
    (first,) = race(folder).decided(1)
    assert sorted(first.set_aside) == ["loss.lam=0,seed=1", "loss.lam=0,seed=2"]
    assert states(folder)["loss.lam=0,seed=0"] is State.completed


def test_a_metric_of_which_less_is_better(tmp_path):
    folder = tmp_path / "s"
    points = [{"loss.lam": lam, "seed": str(seed)} for lam in ("0", "1") for seed in range(3)]
    for place, point in zip(make_sweep(folder, points), points, strict=True):
        loss = {"0": 1.0, "1": 2.0}[point["loss.lam"]] + 0.01 * int(point["seed"]) ** 2 * (1 + float(point["loss.lam"]))
        make_run(
            place, {}, evaluations=[{"step": 25, "nll_loss": loss}], declared=DECLARED, seed=int(point["seed"]),
            status="waiting", steps=25,
        )  # fmt: skip
    names = tuple(f"loss.lam={lam},seed={seed}" for lam in ("0", "1") for seed in range(3))
    (first,) = Race(folder, names, (0.25, 0.5), "nll_loss").decided(1)
    assert {name[:10] for name in first.set_aside} == {"loss.lam=1"}
    assert first.standings[1].lead is not None
    assert first.standings[1].lead.mean > 0


def turn(folder: Path, name: str, stage: int, since: float = 0.0) -> RunOrder | None:
    overrides = ["model=tiny", "data=toy", "train.max_steps=100"]
    like = replace(check(compose(overrides, None), overrides), folder=folder / name)
    return RaceTurn(like, race(folder), stage, since).order()


def test_a_turn_finds_out_what_is_to_be_run(tmp_path):
    folder = waiting(tmp_path / "s")
    best, out = "loss.lam=0.1,seed=0", "loss.lam=0,seed=0"
    assert turn(folder, best, 0) is None, "it has come so far"
    new = turn(folder, "loss.lam=0.1,seed=9", 0)
    assert new is not None
    assert new.until == 0.25
    assert turn(folder, out, 1) is None, "set aside"
    on = turn(folder, best, 1)
    assert on is not None
    assert on.until == 0.5
    gone_on(folder)
    last = turn(folder, best, 2)
    assert last is not None
    assert last.until is None
    result = json.loads((folder / best / "result.json").read_text())
    for status, heartbeat, again in [("failed", 50.0, False), ("failed", 5.0, True), ("completed", 5.0, False)]:
        (folder / best / "result.json").write_text(json.dumps(result | {"status": status, "heartbeat": heartbeat}))
        assert (turn(folder, best, 2, since=10.0) is not None) is again, (status, heartbeat)


def test_what_was_cut_off_at_a_rung_comes_there_again(tmp_path):
    folder = waiting(tmp_path / "s")
    name = "loss.lam=0.1,seed=0"
    result = json.loads((folder / name / "result.json").read_text())
    (folder / name / "result.json").write_text(json.dumps(result | {"status": "running", "pid": 2**22 + 1}))
    assert turn(folder, name, 0) is not None, "its evaluation is there, its checkpoint may not be"


@pytest.mark.parametrize(("share", "steps", "step"), [(0.25, 100, 25), (0.25, 10, 2), (0.01, 10, 1), (0.5, 1, 1)])
def test_rungs_in_steps(share, steps, step):
    assert rung_step(share, steps) == step


def test_the_summary_tells_of_the_race(tmp_path, monkeypatch):
    monkeypatch.setattr("orpo_exp.sweeps.summary.draw_pictures", lambda *_: {})
    folder = waiting(tmp_path / "s")
    race(folder).decided(1)
    gone_on(folder)
    race(folder).decided(2)
    for lam in ("0.1", "1.0"):
        for seed in range(3):
            place = folder / f"loss.lam={lam},seed={seed}"
            ended = {"status": "completed", "steps": 100, "eval": {"rewards/accuracy": LATER[lam][seed]}}
            (place / "result.json").write_text(json.dumps(json.loads((place / "result.json").read_text()) | ended))
    text = write_summary(folder).text
    assert "A race set aside 2 further settings (loss.lam=0; loss.lam=0.5), clearly behind the best one of" in text
    assert "have no result" not in text
    page = (folder / "summary.md").read_text()
    assert "* `loss.lam`: 0, 0.1, 0.5, 1" in page
    assert "12 points are completed: 6 completed, 6 set aside" in page
    assert "After 0.5 of the steps, by rewards/accuracy (higher is better):" in page
    assert "| loss.lam=0 | 3 | 0.5000 | 0.3000 [" in page
    report = (folder / "report.html").read_text()
    assert "curves may cross" in report


REFUSED = [
    (["loss.lam=0,1"], "sweep.racing", "two seeds or more"),
    (["seed=0,1"], "sweep.racing", "two settings or more"),
    (["loss.lam=0,1", "seed=0,1", "sweep.rungs=[0.5,0.25]"], "sweep.rungs", "each above the one before"),
    (["loss.lam=0,1", "seed=0,1", "sweep.rungs=[1.0]"], "sweep.rungs", "below 1"),
    (["loss.lam=0,1", "seed=0,1", "sweep.rungs=[]"], "sweep.rungs", "one or several"),
    (["loss.lam=0,1", "seed=0,1", "sweep.metric=nope"], "sweep.metric", "rewards/accuracy"),
    (["loss.lam=0,1", "seed=0,1", "sweep.metric=rewards/chosen"], "sweep.direction", "max or min"),
]


@pytest.mark.parametrize(("overrides", "key", "allowed"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_what_is_no_race_is_refused(overrides, key, allowed, capfd, tmp_path):
    assert main(["--multirun", "model=tiny", "data=toy", "train.max_steps=4", "sweep.racing=true", *overrides]) == 2
    page = capfd.readouterr().err
    told = dict(line.strip().split(maxsplit=1) for line in page.splitlines() if line.startswith("  "))
    assert told["key"].startswith(key)
    assert allowed in told["allowed"]
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.slow
def test_a_race_on_this_machine_goes_on_bit_for_bit(tmp_path, capfd):
    """A learning rate too small to learn by is set aside at the first rung; then it is finished nevertheless."""
    base = [
        "--multirun", "+experiment=quickstart", "model.hidden_size=32", "train.global_batch_size=8", "train.samples=0",
        "train.max_steps=12", "train.eval_every=3", "data.eval_pairs=32", "data.split_seed=0", "tracker=[]",
        "optimizer.lr=1e-2,1e-8", "seed=0,1,2", "sweep.metric=nll_loss",
    ]  # fmt: skip
    began = time.time()
    assert main([*base, "sweep.racing=true", "sweep.name=raced"]) == 0
    assert main([*base, "sweep.name=whole"]) == 0
    raced, whole = (tmp_path / "sweeps" / "quickstart" / name for name in ("raced", "whole"))
    results = {place.name: read_result(place) for place in raced.glob("optimizer*")}
    assert {name[:17]: result["status"] for name, result in results.items()} == {
        "optimizer.lr=0.01": "completed", "optimizer.lr=1e-0": "set aside",
    }  # fmt: skip
    assert {result["steps"] for result in results.values()} == {3, 12}
    for name, result in results.items():
        ours, theirs = numbers(raced / name), numbers(whole / name)
        assert ours == theirs[: len(ours)], "train and held-out numbers, line for line"
        assert (len(ours) == len(theirs)) == (result["status"] == "completed")
        if result["status"] == "completed":
            assert same_weights(raced / name, whole / name)
            assert (raced / name / "pairs" / "step-00000003.parquet").exists()
    capfd.readouterr()
    assert main([*base, "sweep.racing=true", "sweep.name=raced"]) == 0
    assert "6 points: 3 completed, 3 set aside; 0 to run" in capfd.readouterr().out
    assert main([*base, "sweep.name=raced"]) == 0
    for name in results:
        assert numbers(raced / name) == numbers(whole / name)
        assert same_weights(raced / name, whole / name)
    assert time.time() - began < 400


def same_weights(first: Path, second: Path) -> bool:
    return all(
        (first / "model" / path.name).read_bytes() == path.read_bytes()
        for path in (second / "model").glob("*.safetensors")
    )


def test_what_is_left_of_a_race_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr("orpo_exp.sweeps.summary.draw_pictures", lambda *_: {})
    folder = waiting(tmp_path / "s")
    for place in folder.glob("loss*"):
        ended = {"status": "set aside"}
        if "lam=0.1," in place.name:
            ended = {"status": "completed", "eval": {"rewards/accuracy": 0.9}}
        (place / "result.json").write_text(json.dumps(json.loads((place / "result.json").read_text()) | ended))
    assert write_summary(folder).text.startswith("One setting is left, loss.lam=0.1: rewards/accuracy is 0.9000")
