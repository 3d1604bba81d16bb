import csv
import json

import pytest
from support import uneven_rows

from orpo_exp.data.files import Hub, JsonFiles
from orpo_exp.schema import ConfigError


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def hub_set(folder, **splits):
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        write(folder / "data" / f"{split}-00000-of-00001.parquet", rows)
    return str(folder)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file(tmp_path, suffix):
    path = write(tmp_path / f"data.{suffix}", uneven_rows(10))
    data = JsonFiles(JsonFiles.Config(path=str(path), eval_size=2)).load(seed=0)
    assert (data.size, len(data.held_out)) == (8, 2)
    assert sorted(p.row for p in [*(data.train[i] for i in range(8)), *data.held_out]) == list(range(10))


def test_a_folder_of_files_and_rows_to_evaluate_on(tmp_path):
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "a.jsonl", uneven_rows(4))
    write(tmp_path / "train" / "b.jsonl", uneven_rows(3))
    evaluation = write(tmp_path / "eval.json", uneven_rows(2))
    data = JsonFiles(JsonFiles.Config(path=str(tmp_path / "train"), eval_path=str(evaluation))).load(seed=0)
    assert (data.size, len(data.held_out)) == (7, 2)


def test_a_local_folder_in_the_hubs_form(tmp_path):
    folder = hub_set(tmp_path / "set", train=uneven_rows(9), test=uneven_rows(3))
    data = Hub(Hub.Config(path=folder, eval_split="test")).load(seed=0)
    assert (data.size, len(data.held_out)) == (9, 3)
    with pytest.raises(ConfigError, match="valid"):
        Hub(Hub.Config(path=folder, split="valid")).load(seed=0)


def test_skipped_rows_are_counted_by_reason(tmp_path):
    rows = uneven_rows(6)
    rows[1]["chosen"] = ""
    rows[4]["rejected"] = rows[4]["chosen"]
    data = JsonFiles(JsonFiles.Config(path=str(write(tmp_path / "d.jsonl", rows)), eval_size=1)).load(seed=0)
    assert data.skipped == {"empty chosen": [1], "chosen and rejected are the same": [4]}


def test_skipped_rows_of_the_evaluation_data_are_counted_apart(tmp_path):
    rows = uneven_rows(6)
    rows[1]["chosen"] = ""
    expected = {"empty chosen": [1], "in the evaluation data: empty chosen": [1]}
    train, evaluation = write(tmp_path / "d.jsonl", rows), write(tmp_path / "e.jsonl", rows)
    data = JsonFiles(JsonFiles.Config(path=str(train), eval_path=str(evaluation))).load(seed=0)
    assert (data.size, len(data.held_out), data.skipped) == (5, 5, expected)
    folder = hub_set(tmp_path / "set", train=rows, test=rows)
    assert Hub(Hub.Config(path=folder, eval_split="test")).load(seed=0).skipped == expected


@pytest.mark.parametrize("unusable", [[{"question": "a"}], [{"prompt": "p", "chosen": "", "rejected": "b"}]])
def test_errors_name_the_setting_that_the_evaluation_data_came_from(tmp_path, unusable):
    train, evaluation = write(tmp_path / "d.jsonl", uneven_rows(4)), write(tmp_path / "e.jsonl", unusable)
    with pytest.raises(ConfigError) as told:
        JsonFiles(JsonFiles.Config(path=str(train), eval_path=str(evaluation))).load(seed=0)
    assert (told.value.key, told.value.given) == ("data.eval_path", str(evaluation))

    def told_of(**settings):
        with pytest.raises(ConfigError) as told:
            Hub(Hub.Config(**settings)).load(seed=0)
        return told.value.key, told.value.given

    folder = hub_set(tmp_path / "set", train=uneven_rows(4))
    write(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", [uneven_rows(1)[0] | {"chosen": ""}])
    assert told_of(path=folder, eval_split="test") == ("data.eval_split", "test")
    assert told_of(path=folder, eval_split="valid") == ("data.eval_split", "valid")
    assert told_of(path=folder, split="valid") == ("data.path", folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("README.md", "---\ndataset_info: [\n---\n"),  # a YAMLError
        ("README.md", "---\ndataset_info:\n  features:\n  - dtype: string\n---\n"),  # a KeyError
        ("set.py", "import datasets"),  # a RuntimeError
        ("data/train-00000-of-00001.parquet", "PAR1"),
    ],
)
def test_whatever_datasets_makes_of_a_broken_set_is_told_as_refused(tmp_path, file, content):
    folder = hub_set(tmp_path / "set", train=uneven_rows(4))
    (tmp_path / "set" / file).write_text(content)
    with pytest.raises(ConfigError, match=r"data\.path"):
        Hub(Hub.Config(path=folder)).load(seed=0)
