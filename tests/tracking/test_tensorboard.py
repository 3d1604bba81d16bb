import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orpo_exp.tracking import RunInfo
from orpo_exp.tracking.tensorboard import TensorBoard


def track(folder, *records):
    tracker = TensorBoard(TensorBoard.Config())
    tracker.start(RunInfo(folder, "test", {"loss": {"lam": 0.1}, "note": "${not.resolved}"}, 10))
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
    track(tmp_path, *((step, "train", {"loss": 10.0 * step}) for step in (3, 4, 5)))
    values = {event.step: event.value for event in read(tmp_path).Scalars("train/loss")}
    assert values == pytest.approx({1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0, 5: 50.0})


def test_a_run_that_ends_before_its_first_number_is_no_error(tmp_path):
    track(tmp_path)
    TensorBoard(TensorBoard.Config()).finish({"status": "failed"})
    assert not (tmp_path / "tensorboard").exists()
