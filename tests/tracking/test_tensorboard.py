import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orpo_exp.tracking import RunInfo
from orpo_exp.tracking.tensorboard import TensorBoard


def track(folder, *records, resumed_from=0):
    tracker = TensorBoard(TensorBoard.Config())
    tracker.start(RunInfo(folder, "test", {"loss": {"lam": 0.1}, "note": "${not.resolved}"}, 10, resumed_from))
    for record in records:
        tracker.log(*record)
    tracker.finish({"status": "completed"})


def read(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_train_and_eval_arrive_under_their_names(tmp_path):
    track(tmp_path, (0, "eval", {"rewards/accuracy": 0.5}), (1, "train", {"loss": 2.0}), (2, "train", {"loss": 1.0}))
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) == {"eval/rewards/accuracy", "train/loss"}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    (tag,) = events.Tags()["tensors"]
    assert "lam: 0.1" in events.Tensors(tag)[0].tensor_proto.string_val[0].decode()


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path):
    track(tmp_path, *((step, "train", {"loss": float(step)}) for step in (1, 2, 3, 4)))
    track(tmp_path, *((step, "train", {"loss": 10.0 * step}) for step in (3, 4, 5)), resumed_from=2)
    values = {event.step: event.value for event in read(tmp_path).Scalars("train/loss")}
    assert values == pytest.approx({1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0, 5: 50.0})


def test_a_run_that_begins_again_replaces_everything(tmp_path):
    track(tmp_path, (0, "eval", {"loss": 5.0}), (1, "train", {"loss": 4.0}))
    track(tmp_path, (0, "eval", {"loss": 2.0}))
    events = read(tmp_path)
    assert [event.value for event in events.Scalars("eval/loss")] == [2.0]
    assert events.Scalars("train/loss") == []


def test_what_was_logged_before_a_checkpoint_outlasts_a_kill(tmp_path):
    child = os.fork()
    if child == 0:
        tracker = TensorBoard(TensorBoard.Config())
        tracker.start(RunInfo(tmp_path, "test", {}, 100))
        for step in range(1, 101):
            tracker.log(step, "train", {f"metric {i}": 0.0 for i in range(10)})
        tracker.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    events = read(tmp_path)
    assert {len(events.Scalars(f"train/metric {i}")) for i in range(10)} == {100}


def test_the_end_of_a_run_that_never_began_is_no_error():
    TensorBoard(TensorBoard.Config()).finish({"status": "failed"})
