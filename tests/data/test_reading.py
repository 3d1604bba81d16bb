"""Files as they come, whole and broken: a broken row costs itself only."""

import gzip
import json
import random

import pytest
from support import uneven_rows

from orpo_exp.data.files import JsonFiles
from orpo_exp.data.reading import ENDS, Broken, read
from orpo_exp.schema import ConfigError

ROWS = uneven_rows(40)
LINES = [json.dumps(row) for row in ROWS]


def jsonl(lines) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def in_csv(rows) -> str:
    quoted = [",".join('"' + row[name].replace('"', '""') + '"' for name in row) for row in rows]
    return "\n".join(["prompt,chosen,rejected", *quoted]) + "\n"


def parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=10)


def packed(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.Codec("zstd").compress(content, asbytes=True)


WHOLE = {
    "lines.jsonl": jsonl(LINES),
    "lines.json": jsonl(LINES),
    "no-newline.jsonl": jsonl(LINES)[:-1],
    "windows.jsonl": jsonl(LINES).replace(b"\n", b"\r\n"),
    "marked.jsonl": b"\xef\xbb\xbf" + jsonl(LINES),
    "gaps.jsonl": jsonl([line + "\n\n" for line in LINES]),
    "lines.jsonl.gz": gzip.compress(jsonl(LINES)),
    "lines.jsonl.zst": packed(jsonl(LINES)),
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "array.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "pretty-wrapped.json": json.dumps({"data": ROWS}, indent=1).encode(),
    "table.csv": in_csv(ROWS).encode(),
    "table.csv.gz": gzip.compress(in_csv(ROWS).encode()),
    "escaped.jsonl": jsonl(json.dumps(row, ensure_ascii=True) for row in ROWS),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_read_whole(tmp_path, name):
    (tmp_path / name).write_bytes(WHOLE[name])
    assert list(read(tmp_path / name, "utf-8")) == ROWS


def test_parquet_is_read_a_group_at_a_time(tmp_path):
    parquet(tmp_path / "rows.parquet", ROWS)
    assert list(read(tmp_path / "rows.parquet", "utf-8")) == ROWS


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "gb18030", "cp1252"])
def test_other_encodings_when_they_are_told(tmp_path, encoding):
    rows = [{**row, "prompt": row["prompt"] + "\u00e9"} for row in ROWS]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_bytes(text.encode(encoding))
    assert list(read(tmp_path / "rows.jsonl", encoding)) == rows
    with pytest.raises(ConfigError, match="encoding"):
        JsonFiles(JsonFiles.Config(path=str(tmp_path / "rows.jsonl"))).load(seed=0)


def with_line(place: int, line: bytes) -> bytes:
    lines = jsonl(LINES).splitlines(keepends=True)
    return b"".join([*lines[:place], line + b"\n", *lines[place + 1 :]])


array = json.dumps(ROWS).encode()
BROKEN = {  # the file, which rows are lost, and why
    "cut.jsonl": (jsonl(LINES)[:-20], [39], "not JSON"),
    "words.jsonl": (with_line(7, b"no JSON at all"), [7], "not JSON"),
    "comma.jsonl": (with_line(7, LINES[7].encode()[:-1] + b",}"), [7], "not JSON"),
    "list.jsonl": (with_line(7, b"[1, 2]"), [7], "not a JSON object"),
    "number.jsonl": (with_line(7, b"17"), [7], "not a JSON object"),
    "deep.jsonl": (with_line(7, b"[" * 100_000), [7], "not JSON"),
    "zeros.jsonl": (with_line(7, b"\0" * 50), [7], "not JSON"),
    "latin.jsonl": (with_line(7, b'{"prompt": "\xe9", "chosen": "a", "rejected": "b"}'), [7], "not utf-8"),
    "surrogate.jsonl": (with_line(7, b'{"prompt": "\\ud83d", "chosen": "a", "rejected": "b"}'), [7], "no text"),
    "cut.jsonl.gz": (gzip.compress(jsonl([*LINES[:39], LINES[39] * 500]))[:-30], [39], ENDS),
    "short.jsonl.gz": (gzip.compress(jsonl(LINES[:39]))[:-9] + b"", [39], ENDS),
    "cut.json": (array[:-20], [39], ENDS),
    "no-bracket.json": (array[:-1], [40], ENDS),
    "broken.json": (array.replace(LINES[7].encode(), LINES[7].encode()[:-1]), [7], "not JSON"),
    "broken-first.json": (array.replace(LINES[0].encode(), b'{"prompt": nothing}'), [0], "not JSON"),
    "not-object.json": (array.replace(LINES[7].encode(), b"17"), [7], "not a JSON object"),
    "fields.csv": (
        in_csv(ROWS).replace('"\n', '","more"\n', 8).replace('","more"\n', '"\n', 7).encode(),
        [7],
        "fields",
    ),
    "few.csv": ((in_csv(ROWS) + '"alone"\n').encode(), [40], "fields"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_costs_itself_and_is_told_with_its_number(tmp_path, name):
    content, lost, why = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    data = JsonFiles(JsonFiles.Config(path=str(tmp_path / name), eval_size=2)).load(seed=0)
    ((reason, numbers),) = data.skipped.items()
    assert why in reason
    assert numbers == lost
    rows = sorted(pair.row for pair in [*(data.train[i] for i in range(data.size)), *data.held_out])
    assert rows == [row for row in range(40) if row not in lost]


def test_a_quote_that_is_never_closed_costs_what_stands_behind_it(tmp_path):
    lines = ["prompt,chosen,rejected", *(f"{i},a,b" for i in range(10))]
    lines[7] = '6,"a,b'
    (tmp_path / "quote.csv").write_text("\n".join(lines) + "\n")
    rows = list(read(tmp_path / "quote.csv", "utf-8"))
    assert rows[:6] == [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(6)]
    assert rows[6:] == [Broken("behind a quote that is never closed")] * 4


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.jsonl", b"", "empty"),
        ("blank.jsonl", b"\n\n", "no row at all"),
        ("nothing.json", b"[]", "no row at all"),
        ("words.jsonl", b"no JSON\nat all\n", "not JSON: 2 (0, 1)"),
        ("broken.json", b'{"data": [{"prompt": "a"', "not whole"),
        ("several.json", json.dumps({"train": ROWS, "test": ROWS}).encode(), "several lists of rows: train, test"),
        ("rows.parquet", b"PAR1", "no Parquet file"),
        ("rows.txt", b"prompt", "ending in"),
        ("other.jsonl", b'{"question": "a", "answer": "b"}\n', "columns answer, question"),
        ("marked.jsonl", "".join(LINES).encode("utf-16"), "set data.encoding=utf-16"),
        ("half.jsonl", with_line(3, b"x") + b"x\n" * 10, "is broken"),
        ("image.jsonl", bytes(range(256)) * 40, "not"),
        ("packed.jsonl.gz", b"no gzip", "cannot be unpacked"),
        ("packed.jsonl.zst", b"no zstd", "cannot be unpacked"),
        ("header.csv", b"prompt,chosen,rejected\n", "no row at all"),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_message_that_names_it(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        JsonFiles(JsonFiles.Config(path=str(tmp_path / name))).load(seed=0)
    assert refused.value.key == "data.path"
    assert told in str(refused.value)
    assert name in str(refused.value)


def said(text):
    """Two answers to a question, in each of the forms but TRL's plain one."""
    hi, yes, no = ({"role": r, "content": c} for r, c in (("user", text), ("assistant", "Yes"), ("assistant", "No")))
    scored = [{"response": of["content"], "overall_score": len(of["content"])} for of in (yes, no)]
    return {
        "turns": [{"prompt": [hi], "chosen": [yes], "rejected": [no]}],
        "implicit": [{"chosen": [hi, yes], "rejected": [hi, no]}],
        "implicit-text": [{"chosen": f"{text} Yes", "rejected": f"{text} No"}],
        "sharegpt": [{"conversations": [{"from": "human", "value": text}], "chosen": yes, "rejected": no}],
        "colossalchat": [{"context": [hi], "chosen": [yes], "rejected": [no]}],
        "hh": [{side: f"\n\nHuman: {text}\n\nAssistant: {of}" for side, of in (("chosen", "Yes"), ("rejected", "No"))}],
        "ultrafeedback": [{"instruction": text, "completions": scored}],
        "kto": [{"prompt": text, "completion": of, "label": of == "Yes"} for of in ("Yes", "No")],
    }


def test_of_a_folder_each_file_counts_its_own_rows_and_the_good_ones_train(tmp_path):
    for name, content in WHOLE.items():
        (tmp_path / name).write_bytes(content)
    forms = {name: [row for i in range(5) for row in said(f"Question {i}?")[name]] for name in said("")}
    for name, rows in forms.items():
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(map(json.dumps, rows)))
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / "broken.jsonl").write_bytes(with_line(7, b"x"))
    data = JsonFiles(JsonFiles.Config(path=str(tmp_path), eval_size=2)).load(seed=0)
    assert data.size + len(data.held_out) == 40 * len(WHOLE) + 39 + 5 * len(forms)
    assert data.skipped == {"broken.jsonl: not JSON": [7]}
    asked = [pair for pair in [*data.train, *data.held_out] if "Question 3?" in str(pair.prompt)]
    assert {(pair.chosen.strip(), pair.rejected.strip()) for pair in asked} == {("Yes", "No")}
    assert len(asked) == len(forms)


def test_max_skipped_says_how_much_may_be_broken(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(jsonl(LINES) + b"x\n" * 10)

    def load(share):
        return JsonFiles(JsonFiles.Config(path=str(tmp_path / "rows.jsonl"), max_skipped=share)).load(seed=0)

    assert load(0.2).skipped == {"not JSON": list(range(40, 50))}
    with pytest.raises(ConfigError, match="Of its 50 rows 10 are"):
        load(0.19)
    (tmp_path / "rows.jsonl").write_bytes(with_line(7, b"x"))
    with pytest.raises(ConfigError, match="max_skipped=0"):
        load(0.0)


def test_twenty_thousand_rows_of_which_many_are_broken_in_every_way(tmp_path):
    """What is broken is counted, one by one; what is whole is kept. (benchmarks/broken_rows.py: a million.)"""
    from data.damage import damaged

    rng = random.Random(0)
    whole, lines = damaged(20_000, rng)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    data = JsonFiles(JsonFiles.Config(path=str(tmp_path / "rows.jsonl"), max_skipped=1, eval_size=10)).load(seed=0)
    rows = sorted(pair.row for pair in [*(data.train[i] for i in range(data.size)), *data.held_out])
    assert rows == whole
    assert sum(map(len, data.skipped.values())) == 20_000 - len(whole)
    assert len(data.skipped) > 8
