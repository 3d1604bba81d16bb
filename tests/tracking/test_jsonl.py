import json
import math
from pathlib import Path

from orpo_exp.tracking import RunInfo
from orpo_exp.tracking.jsonl import Jsonl, read_metrics


def write(folder: Path, *records: tuple[int, str, dict[str, float]], resumed_from: int = 0) -> Path:
    tracker = Jsonl()
    tracker.start(RunInfo(folder, "test", {}, 10, resumed_from))
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


def test_a_resumed_run_cuts_the_lines_after_its_checkpoint(tmp_path):
    path = write(tmp_path, (1, "train", {"loss": 1.0}), (2, "train", {"loss": 2.0}), (3, "train", {"loss": 3.0}))
    with path.open("a") as file:
        file.write('{"step": 4, "split": "tr')
    write(tmp_path, (3, "train", {"loss": 30.0}), (4, "train", {"loss": 40.0}), resumed_from=2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_a_run_that_begins_again_leaves_no_line_of_before(tmp_path):
    path = write(tmp_path, (0, "eval", {"loss": 1.0}), (1, "train", {"loss": 1.0}))
    write(tmp_path, (0, "eval", {"loss": 2.0}))
    assert [record["loss"] for record in read_metrics(path)] == [2.0]


def test_of_two_records_of_a_step_the_last_counts_and_a_torn_line_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train", "a": 1}\n{"step": 1, "split": "train", "a": 2}\n{"step": 2, "spl')
    assert read_metrics(path) == [{"step": 1, "split": "train", "a": 2}]


def test_one_split_alone_is_read(tmp_path):
    path = write(tmp_path, (1, "train", {"eval": 1.0}), (1, "eval", {"loss": 2.0}), (2, "train", {"loss": 3.0}))
    assert [(r["split"], r["loss"]) for r in read_metrics(path, "eval")] == [("eval", 2.0)]
    assert [r["step"] for r in read_metrics(path, "train")] == [1, 2]


def test_no_file_means_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
