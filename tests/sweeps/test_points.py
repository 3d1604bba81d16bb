"""A sweep's points: their combinations, names and folders, and which of them a re-issued sweep runs."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
from sweeps.builder import DEAD, make_run

from orpo_exp.composition import check, compose
from orpo_exp.launchers.slurm import note_jobs
from orpo_exp.losses.orpo import ORPO
from orpo_exp.runs.order import RunOrder
from orpo_exp.runs.states import State
from orpo_exp.schema import ConfigError
from orpo_exp.sweeps.points import Combination, Plan, combinations, plan, sweep_name
from orpo_exp.sweeps.sweep_file import read_sweep, write_sweep

TOY = ["model=tiny", "data=toy", "train.max_steps=1"]


def ordered(*overrides: str) -> list[tuple[Combination, RunOrder]]:
    return [(p, check(compose(p.overrides, None), p.overrides)) for p in combinations([*TOY, *overrides])]


def planned(folder: Path, *overrides: str) -> Plan:
    """The plan of a command, its sweep.json written."""
    found = plan(folder, "adhoc", list(overrides), ordered(*overrides))
    folder.mkdir(exist_ok=True)
    write_sweep(folder, found.sweep)
    return found


def name_of(*overrides: str) -> str:
    points = ordered(*overrides)
    return sweep_name([order.config for _, order in points], list(points[0][0].swept))


def test_combinations_in_the_order_typed():
    found = combinations(["a=1,2", "b=x", "+c=range(0,2)"])
    assert [point.name for point in found] == ["a=1,c=0", "a=1,c=1", "a=2,c=0", "a=2,c=1"]
    assert found[1] == Combination(["a=1", "b=x", "+c=1"], {"a": "1", "c": "1"})
    assert combinations(["a=1", "~b"]) == [Combination(["a=1", "~b"], {})]


def test_an_override_given_twice_counts_as_the_later_one():
    assert [point.overrides for point in combinations(["a=1,2", "b=0", "a=3"])] == [["a=3", "b=0"]]


@pytest.mark.parametrize(
    "override",
    ["loss.lam=interval(0,1)", "hydra.launcher.parallel=1,2", "sweep.name=a,b", "loss=glob(*)"],
)
def test_what_cannot_be_swept_is_refused(override):
    with pytest.raises(ConfigError, match="is swept"):
        combinations([override])


@pytest.mark.parametrize("values", ["range(5,0)", "range(1,0,0.25)", "range(0,5,0)"])
def test_a_range_without_values_is_refused(values):
    with pytest.raises(ConfigError, match="at least one value") as refused:
        combinations([f"seed={values}"])
    assert (refused.value.key, refused.value.given) == ("seed", values)


def test_the_name_is_that_of_what_is_swept_and_shared():
    base = name_of("loss.lam=0,0.1", "seed=0,1")
    assert base == name_of("seed=5,6,7", "loss.lam=0,0.1,0.5"), "more values, or in another order"
    assert base == name_of("loss.lam=0,0.1", "seed=0,1", "tracker=[]", "processes=2"), "nothing that changes a number"
    assert base != name_of("loss.lam=0,0.1")
    assert base != name_of("loss.lam=0,0.1", "seed=0,1", "optimizer.lr=1")
    assert name_of("loss=orpo,sft") == name_of("loss=orpo,sft,simpo")
    assert name_of("loss=orpo,sft") != name_of("loss=orpo,sft", "optimizer=sgd")


def test_folders_say_what_sets_a_point_apart(tmp_path):
    path = ["data=json", "loss.lam=0.1,0.5", "seed=0", "data.path=x.json,'/a b/y.json'"]
    points = planned(tmp_path / "s", *path).sweep.points
    assert points[0].folder == f"loss.lam=0.1,data.path=x.json_{points[0].config_hash[:8]}"
    assert points[1].folder == f"loss.lam=0.1,data.path=-a-b-y.json-_{points[1].config_hash[:8]}"
    assert points[0].overrides == {"loss.lam": "0.1", "data.path": "x.json"}
    sweep = read_sweep(tmp_path / "s")
    assert sweep is not None
    assert sweep.swept == ["loss.lam", "data.path"]
    assert sweep.points == points
    long = planned(tmp_path / "t", "data=json", f"data.path={'x' * 200},y").sweep.points[0].folder
    assert len(long) == 109


def test_the_same_point_given_twice_is_one(tmp_path):
    assert len(planned(tmp_path / "s", "loss.lam=0.1,0.10,1e-1").sweep.points) == 1


def test_losses_with_equal_fields_are_two_points(tmp_path):
    """Neither has a field of its own; only the choice tells them apart."""
    points = planned(tmp_path / "s", "loss=apo_zero,apo_down").sweep.points
    assert len({point.config_hash for point in points}) == len({point.folder for point in points}) == 2


def test_what_changes_no_number_can_be_swept_too(tmp_path):
    """Speed is compared so: the points compute the same, and are not the same point."""
    points = planned(tmp_path / "s", "train.micro_batch_size=1,2").sweep.points
    assert len({point.config_hash for point in points}) == 1
    assert len({point.folder for point in points}) == 2


def test_points_that_would_share_a_folder_are_refused(tmp_path):
    long = "x" * 100
    with pytest.raises(ConfigError, match="100 characters"):
        planned(tmp_path / "s", f"tracker.wandb.project={long}0,{long}1")


@pytest.mark.parametrize(
    ("status", "again"),
    [(None, True), ("completed", False), ("failed", True), ("interrupted", True), ("running", False), ("killed", True)],
)
def test_a_sweep_that_is_issued_again_runs_what_has_not_completed(tmp_path, status, again):
    folder = tmp_path / "s"
    first = planned(folder, "seed=0,1")
    assert [order.folder.name for order in first.to_run] == [point.folder for point in first.sweep.points]
    if status:
        values = {"status": "running", "pid": DEAD} if status == "killed" else {"status": status}
        make_run(folder / first.sweep.points[0].folder, {}, **values)
    second = planned(folder, "seed=0,1")
    assert second.states == {State.missing: 2} if status is None else {State.missing: 1, State(status): 1}
    assert [order.config.seed for order in second.to_run] == ([0, 1] if again else [1])


def test_more_values_keep_the_points_that_are_known(tmp_path):
    folder = tmp_path / "s"
    known = planned(folder, "seed=0,1").sweep.points
    make_run(folder / known[0].folder, {})
    wider = planned(folder, "seed=0,1,2", "loss.lam=0.1")
    assert wider.sweep.points[:2] == known
    assert [order.config.seed for order in wider.to_run] == [1, 2]
    narrower = planned(folder, "seed=2,3")
    assert [point.overrides["seed"] for point in narrower.sweep.points] == ["0", "1", "2", "3"]
    assert narrower.states == {State.missing: 2}, "the others were not asked for"


def test_a_known_point_takes_over_the_keys_that_are_swept_now(tmp_path):
    folder = tmp_path / "s"
    known = planned(folder, "seed=0,1").sweep.points
    wider = planned(folder, "loss.lam=0.1,0.5", "seed=0,1", "loss=orpo").sweep
    assert [(p.folder, p.overrides) for p in wider.points[:2]] == [
        (known[0].folder, {"loss.lam": "0.1", "seed": "0"}),
        (known[1].folder, {"loss.lam": "0.1", "seed": "1"}),
    ]
    assert len(wider.points) == 4
    assert planned(folder, "loss.lam=0.10,0.5", "seed=0,1").sweep.points == wider.points, "typed otherwise"
    assert planned(folder, "seed=0,1").sweep.points == wider.points


def test_points_of_a_precision_that_is_swept_later_are_found_again(tmp_path):
    planned(tmp_path, "seed=0,1")
    again = planned(tmp_path, "seed=0,1", "plugin.precision=fp32,bf16")
    assert len(again.sweep.points) == 4


def test_a_value_that_means_as_before_makes_no_other_point(tmp_path, monkeypatch):
    """Neither where a key was swept over it, nor where it is not swept any more."""
    lam = next(f for f in dataclasses.fields(ORPO.Config) if f.name == "lam")
    folder = tmp_path / "s"
    points = planned(folder, "loss.lam=0.1,0.5", "seed=0").sweep.points
    monkeypatch.setattr(lam, "metadata", {**lam.metadata, "as_before": 0.1})
    hashes = [order.config.config_hash for _, order in ordered("loss.lam=0.1,0.5", "seed=0")]
    points = [replace(point, config_hash=now) for point, now in zip(points, hashes, strict=True)]
    write_sweep(folder, replace(read_sweep(folder), points=points))
    assert planned(folder, "seed=0").sweep.points == points


def test_a_job_that_slurm_has_not_ended_is_left_alone(tmp_path, monkeypatch):
    """A run that SIGTERM stopped says interrupted while its job waits for Slurm to end it."""
    folder = tmp_path / "s"
    (point,) = planned(folder, "seed=7").sweep.points
    make_run(folder / point.folder, {}, status="interrupted", job_id="12_0")
    note_jobs(folder, {point.folder: ["12_0"]})
    monkeypatch.setattr("orpo_exp.sweeps.points.slurm_queue", lambda: {"12_0": "RUNNING"})
    assert planned(folder, "seed=7").to_run == []
    monkeypatch.setattr("orpo_exp.sweeps.points.slurm_queue", dict)
    assert len(planned(folder, "seed=7").to_run) == 1


@pytest.mark.parametrize(
    ("point", "refused"), [({}, True), ({"status": "failed"}, True), ({"status": "completed"}, False)]
)
def test_while_slurm_does_not_answer_nothing_is_submitted_again(tmp_path, monkeypatch, point, refused):
    folder = tmp_path / "s"
    (known,) = planned(folder, "seed=7").sweep.points
    note_jobs(folder, {known.folder: ["12_0"]})
    if point:
        make_run(folder / known.folder, {}, job_id="12_0", **point)
    monkeypatch.setattr("orpo_exp.sweeps.points.slurm_queue", lambda: None)
    monkeypatch.setattr("shutil.which", lambda name: None)  # a machine without Slurm, where the sweep was copied to
    assert len(planned(folder, "seed=7").to_run) == refused
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    if refused:
        with pytest.raises(ConfigError, match="squeue"):
            planned(folder, "seed=7")
    else:
        assert planned(folder, "seed=7").to_run == []


def test_a_point_is_known_whatever_the_first_one_asked_for_is(tmp_path):
    """ORPO has no beta, and still it is loss.beta that the known points are told apart by."""
    folder = tmp_path / "s"
    known = planned(folder, "loss=dpo", "loss.beta=0.1,0.2").sweep.points
    found = planned(folder, "loss=orpo,dpo").sweep.points[:2]
    assert [p.folder for p in found] == [p.folder for p in known]
    assert [p.overrides for p in found] == [{"loss": "dpo", "loss.beta": "0.1"}, {"loss.beta": "0.2"}]
    assert len(read_sweep(folder).points) == 3


def test_a_sweep_json_that_cannot_be_understood_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be understood"):
        planned(tmp_path, "seed=0,1")
