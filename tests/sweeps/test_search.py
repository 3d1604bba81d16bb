"""Searches: what may be searched, that every trial is asked for and told once, and what a killed one goes on with."""

import json
import math
import multiprocessing
import pickle
import time
from collections import Counter
from pathlib import Path

import pytest
from support import kill_tree, start_run, wait_for_end

from orpo_exp.cli import main, planned_sweep
from orpo_exp.composition import check, compose
from orpo_exp.metrics import Direction
from orpo_exp.schema import ConfigError
from orpo_exp.sweeps.search import Search
from orpo_exp.sweeps.space import Choice, Interval, has_interval, space_of
from orpo_exp.sweeps.study import JOURNAL, Study
from orpo_exp.sweeps.sweep_file import Sweep, read_sweep, write_sweep

TOY = ["model=tiny", "data=toy", "train.max_steps=1"]
LAM = Interval("loss.lam", 0.01, 2.0, whole=False, log=True)
BATCH = Interval("train.global_batch_size", 1, 9, whole=True, log=False)
LOSS = Choice("loss", ("orpo", "simpo"))


def study(folder: Path, *axes, metric: str = "rewards/accuracy") -> Study:
    return Study(folder, axes or (LAM,), metric, Direction.max)


def told(folder: Path) -> Counter[int]:
    """How often each trial was told a value, by its number in the journal."""
    records = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    return Counter(of["trial_id"] for of in records if of["op_code"] == 6 and of["state"] == 1)


def test_what_a_command_leaves_open():
    space = space_of(["loss.lam=tag(log,interval(0.01,2))", "a=b", "train.max_steps=int(interval(1,9))", "seed=3,5",
                      "+x.y=1,2", "loss.lam=tag(log,interval(0.1,1))"])  # fmt: skip
    assert space.axes == (
        Interval("train.max_steps", 1, 9, whole=True, log=False), Choice("+x.y", ("1", "2")),
        Interval("loss.lam", 0.1, 1.0, whole=False, log=True),
    )  # fmt: skip
    assert (space.fixed, space.seeds, space.size) == (("a=b",), ("3", "5"), math.inf)
    point = space.point(("4", "2", "0.5"), "3")
    assert point.overrides == ["a=b", "train.max_steps=4", "+x.y=2", "loss.lam=0.5", "seed=3"]
    assert point.name == "train.max_steps=4,x.y=2,loss.lam=0.5,seed=3"
    assert space_of(["a=1,2", "b=x,y,z"]).size == 6
    assert has_interval(["a=1", "b=interval(0,1)"]) == "b=interval(0,1)"
    assert has_interval(["a=1,2"]) is None


def test_examples_hold_every_end_and_every_value():
    space = space_of(["loss.lam=interval(0,1)", "loss=orpo,simpo", "seed=0,1,2,3,4,5,6"])
    seen = {(of.swept["loss.lam"], of.swept["loss"]) for of in space.examples}
    assert {lam for lam, _ in seen} == {"0.0", "1.0", "0.382"}
    assert {loss for _, loss in seen} == {"orpo", "simpo"}
    assert [of.swept["seed"] for of in space.examples] == ["0", "1", "2", "3", "4", "5", "6"]


def test_values_are_short_and_stay_within():
    assert LAM.text(0.123456) == "0.1235"
    assert Interval("a", 0.12345, 0.6543219, False, False).text(0.65432189) == "0.6543"
    assert Interval("a", 0.12348, 1, False, False).text(0.123481) == "0.1235"
    assert Interval("a", 0.12342, 1, False, False).text(0.123421) == "0.12342"
    assert BATCH.text(3.0) == "3"
    assert [BATCH.at(0), BATCH.at(1), LOSS.at(1.0), LAM.at(0.5)] == [1, 9, "simpo", pytest.approx(math.sqrt(0.02))]


REFUSED = [
    (["loss.lam=interval(0,1)"], "loss.lam", "with sweep.trials, an interval"),
    (["loss.lam=interval(1,0)", "sweep.trials=2"], "loss.lam", "to a larger one"),
    (["loss.lam=tag(log,interval(0,1))", "sweep.trials=2"], "loss.lam", "above 0"),
    (["loss.lam=tag(cube,interval(0,1))", "sweep.trials=2"], "loss.lam", "the tag log"),
    (["loss.lam=interval(-1,1)", "sweep.trials=2"], "loss.lam", "at least 0"),
    (["train.global_batch_size=interval(1,8)", "sweep.trials=2"], "train.global_batch_size", "a whole number"),
    (["seed=interval(0,1)", "sweep.trials=2"], "seed", "but the seed"),
    (["hydra.launcher.parallel=interval(0,1)", "sweep.trials=2"], "hydra.launcher.parallel", "a run's own keys"),
    (["seed=0,1", "sweep.trials=2"], "sweep.trials", "a key other than the seed"),
    (["loss.lam=0,1", "sweep.trials=3"], "sweep.trials", "at most 2"),
    (["loss.lam=interval(0,1)", "sweep.trials=0"], "sweep.trials", "at least 1"),
    (["loss.lam=interval(0,1)", "seed=0,1", "sweep.trials=2", "sweep.racing=true"], "sweep.racing", "sweep.trials"),
    (["loss.lam=interval(0,1)", "sweep.trials=2", "plan_only=true"], "plan_only", "not known yet"),
    (["loss.lam=interval(0,1)", "sweep.trials=2", "sweep.metric=nope"], "sweep.metric", "rewards/accuracy"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "key", "allowed"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_what_cannot_be_searched_is_refused(overrides, key, allowed, capfd, tmp_path):
    assert main(["--multirun", *TOY, *overrides]) == 2
    page = capfd.readouterr().err
    told = dict(line.strip().split(maxsplit=1) for line in page.splitlines() if line.startswith("  "))
    assert told["key"] == key
    assert allowed in told["allowed"]
    assert not (tmp_path / "sweeps").exists()


def test_a_trial_keeps_its_values_and_is_told_once(tmp_path):
    found: dict[tuple[str, ...], float] = {}
    first = [study(tmp_path).trial(number, found.get) for number in range(3)]
    assert len(set(first)) == 3
    assert [study(tmp_path).trial(number, found.get) for number in range(3)] == first
    assert not told(tmp_path)
    found |= {first[0]: 0.5, first[1]: math.nan, first[2]: 0.7}  # the second has failed, and may be run again
    for _ in range(2):
        assert study(tmp_path).known(found.get) == first
    assert sorted(told(tmp_path).values()) == [1, 1]
    assert study(tmp_path).trial(5, found.get) not in first


def test_what_was_cut_short_is_asked_for_anew(tmp_path):
    first = [study(tmp_path).trial(number, {}.get) for number in range(2)]
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    # the last trial made, but none of its values written; and half of a line
    made = max(i for i, line in enumerate(lines) if json.loads(line)["op_code"] == 4)
    path.write_bytes(b"".join(lines[: made + 1]) + lines[made + 1][:20])
    again = study(tmp_path).trial(1, {}.get)
    assert study(tmp_path).trial(0, {}.get) == first[0]
    assert again != first[0]
    assert study(tmp_path).known({}.get) == [first[0], again]


def test_settings_are_not_tried_twice(tmp_path):
    found: dict[tuple[str, ...], float] = {}
    tried = []
    for number in range(4):
        values = study(tmp_path, LOSS, Choice("a", ("1", "2"))).trial(number, found.get)
        tried.append(values)
        found[values] = 0.5
    assert len(set(tried)) == 4


def test_another_metric_or_other_lists_are_another_search(tmp_path):
    study(tmp_path, LOSS).trial(0, {}.get)
    with pytest.raises(ConfigError, match="what this search was begun with"):
        study(tmp_path, LOSS, metric="nll_loss").trial(0, {}.get)
    with pytest.raises(ConfigError, match="lists that this search was begun with"):
        study(tmp_path, Choice("loss", ("orpo", "dpo"))).trial(1, {}.get)
    with pytest.raises(ConfigError, match="loss: what this search was begun with"):
        study(tmp_path, LAM).trial(0, {}.get)
    assert study(tmp_path, LOSS).known({}.get)


def test_a_trial_that_failed_is_kept_away_from(tmp_path):
    """Half of the space fails, and what works is best at its edge: of the later trials few go over it."""

    def outcome(values):
        x = float(values[0])
        return math.nan if x > 0.5 else x

    axis = Interval("a", 0.0, 1.0, whole=False, log=False)
    later = [float(study(tmp_path, axis).trial(number, outcome)[0]) for number in range(12)][6:]
    assert sum(x > 0.5 for x in later) <= 3
    assert max(x for x in later if x <= 0.5) > 0.4
    assert sum(told(tmp_path).values()) == sum(not math.isnan(outcome(v)) for v in study(tmp_path, axis).known(outcome))


def ask(folder: str, number: int) -> None:
    study(Path(folder)).trial(number, {}.get)


def test_several_processes_ask_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=ask, args=(str(tmp_path), number)) for number in (3, 3, 2, 0)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(study(tmp_path).known({}.get)) == 4


def composed(point):
    return check(compose([*TOY, *point.overrides], None), point.overrides)


def test_a_turn_lists_its_point_and_the_next_one_learns_from_it(tmp_path):
    space = space_of(["loss.lam=interval(0,1)", "seed=0,1"])
    search = Search(tmp_path, space, study(tmp_path, *space.axes), composed)
    write_sweep(tmp_path, Sweep("adhoc", "s", ["loss.lam", "seed"], [], []))
    first = [search.order(0, seed) for seed in ("0", "1")]
    assert all(order is not None and order.folder.parent == tmp_path for order in first)
    again = pickle.loads(pickle.dumps(search)).order(0, "1")  # as it travels
    assert again is not None
    assert again.folder == first[1].folder
    assert len(read_sweep(tmp_path).points) == 2
    for order, accuracy in zip(first, (0.5, 0.75), strict=True):
        order.folder.mkdir()
        result = {"status": "completed", "eval": {"rewards/accuracy": accuracy}}
        (order.folder / "result.json").write_text(json.dumps(result))
    assert search.order(0, "0") is None, "completed"
    values = search.study.known(search.outcome)[0]
    assert search.outcome(values) == 0.625
    assert list(told(tmp_path).values()) == [1]


def test_a_search_is_found_again_and_apart_from_a_sweep(tmp_path):
    searched = ["loss.lam=interval(0,1)", "seed=0,1", "sweep.trials=3"]
    planned, folder, _ = planned_sweep([*TOY, *searched], None)
    assert len(planned.to_run) == 6
    assert [turn.name for turn in planned.stages[0]][:3] == ["trial 0, seed 0", "trial 0, seed 1", "trial 1, seed 0"]
    assert (planned.sweep.metric, planned.sweep.direction) == ("rewards/accuracy", "max")
    wider = ["loss.lam=interval(0,2)", "seed=0,1", "sweep.trials=5"]
    assert planned_sweep([*TOY, *wider], None)[1] == folder
    assert planned_sweep([*TOY, "loss.lam=0,1", "seed=0,1"], None)[1] != folder
    differently = planned_sweep([*TOY, "loss=orpo,dpo,simpo", "seed=0,1", "sweep.trials=2"], None)[0]
    assert differently.sweep.metric == "logps/accuracy"


SMALL = [
    "--multirun", "+experiment=quickstart", "model.hidden_size=32", "train.global_batch_size=8", "train.samples=0",
    "train.max_steps=40", "train.eval_every=0", "data.eval_pairs=16", "data.split_seed=0", "tracker=[]",
    "optimizer.lr=tag(log,interval(1e-4,1e-1))", "seed=0,1", "sweep.trials=3", "sweep.name=s",
]  # fmt: skip


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(tmp_path):
    """Once the process that asks is killed, and once all are."""
    folder = tmp_path / "sweeps" / "quickstart" / "s"

    def completed() -> int:
        return sum('"completed"' in path.read_text() for path in folder.glob("*/result.json"))

    for goal in (1, 3):
        process = start_run(tmp_path, *SMALL)
        while completed() < goal:
            assert process.poll() is None
            time.sleep(0.02)
        if goal == 3:
            kill_tree(process)
        else:
            process.kill()
            process.communicate()
    wait_for_end(start_run(tmp_path, *SMALL), code=0, timeout=300)
    sweep = read_sweep(folder)
    assert sweep is not None
    assert len(sweep.points) == 6 == completed()
    assert len({point.overrides["optimizer.lr"] for point in sweep.points}) == 3
    assert sorted(told(folder).values()) == [1, 1, 1]
    again, _, _ = planned_sweep(SMALL[1:], None)
    assert (again.states, again.to_run) == (Counter(completed=6), [])
    more, _, _ = planned_sweep([*SMALL[1:], "sweep.trials=4"], None)
    assert [turn.name for turn in more.stages[0]] == ["trial 3, seed 0", "trial 3, seed 1"]
