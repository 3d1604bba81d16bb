import json
import math
from pathlib import Path

from orpo_exp.tracking import RunInfo
from orpo_exp.tracking.jsonl import Jsonl, read_metrics


def write(folder: Path, *records: tuple[int, str, dict[str, float]]) -> Path:
    tracker = Jsonl()
    tracker.start(RunInfo(folder, "test", {}, 10))
    for record in records:
        tracker.log(*record)
    tracker.finish({"status": "completed"})
    return folder / "metrics.jsonl"


def test_a_line_holds_step_split_time_and_every_digit(tmp_path):
    path = write(tmp_path, (1, "train", {"loss": 0.1 + 0.2, "lr": 5e-324}), (1, "eval", {"loss": 1 / 3}))
    first, second = map(json.loads, path.read_text().splitlines())
    assert list(first) == ["step", "split", "time", "loss", "lr"]
    assert first["loss"] == 0.1 + 0.2
    assert first["lr"] == 5e-324
    assert second["split"] == "eval"
    assert second["loss"] == 1 / 3


def test_lines_are_on_disk_at_once(tmp_path):
    tracker = Jsonl()
    tracker.start(RunInfo(tmp_path, "test", {}, 10))
    tracker.log(1, "train", {"loss": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_what_is_not_finite_is_null_and_comes_back_as_nan(tmp_path):
    path = write(tmp_path, (1, "train", {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0}))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    line = json.loads(path.read_text(), parse_constant=refuse)
    assert [line[name] for name in "abcd"] == [None, None, None, 0.0]
    (record,) = read_metrics(path)
    assert all(math.isnan(record[name]) for name in "abc")


def test_a_resumed_run_goes_on_after_a_torn_line_and_its_later_numbers_count(tmp_path):
    path = write(tmp_path, (1, "train", {"loss": 1.0}), (2, "train", {"loss": 2.0}), (2, "eval", {"loss": 2.5}))
    with path.open("a") as file:
        file.write('{"step": 3, "split": "tr')
    write(tmp_path, (2, "train", {"loss": 20.0}), (3, "train", {"loss": 30.0}))
    found = {(record["step"], record["split"]): record["loss"] for record in read_metrics(path)}
    assert found == {(1, "train"): 1.0, (2, "train"): 20.0, (2, "eval"): 2.5, (3, "train"): 30.0}
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 2, 3]


def test_no_file_means_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
