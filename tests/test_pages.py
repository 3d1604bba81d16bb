"""report.html: whole in itself, and text stays text. benchmarks/report_pages.py opens pages in a browser."""

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import pytest
from support import uneven_rows
from sweeps.builder import DECLARED, lambda_sweep, make_pairs, make_run, make_sweep

from orpo_exp.pages import write_run_page
from orpo_exp.pages.document import thinned
from orpo_exp.sweeps import summary
from orpo_exp.sweeps.summary import write_summary
from orpo_exp.sweeps.tables import escaped

HOSTILE = "</script><img src=x onerror=alert(1)><!-- \u2028 ]]> & \" ' \\" + "x" * 5000


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(summary, "draw_pictures", lambda *_: {})


class Elements(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and what lies in scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if data.strip() and self.elements[-1][0] in ("script", "style"):
            self.inside.append((self.elements[-1], data))


def read(path):
    """A page's data, once it is sure that it is whole in itself."""
    text = path.read_text()
    page = Elements(text)
    tags = [tag for tag, _ in page.elements]
    assert tags == ["html", "head", "meta", "meta", "meta", "title", "style", "body", "main", "noscript", "p",
                    "script", "script"]  # fmt: skip
    assert not [of for _, attributes in page.elements for of in ("src", "href", "onerror") if of in attributes]
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src 'none'" in policy
    (_, style), (_, data), (_, script) = page.inside
    for content in (style, script):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    return json.loads(data)


def block(content, title):
    return next(of for of in content["blocks"] if of.get("title") == title)


def test_a_run_writes_its_page(run, pairs_file):
    folder = run(
        "+experiment=orpo", "model=tiny", "data.path=pairs.jsonl", "data.eval_size=6", "data.test_size=4",
        "train.max_steps=4", "train.global_batch_size=8", "train.eval_every=2", "train.samples=2",
        "train.sample_tokens=4", "tracker=[]", "optimizer.lr=1e-3",
    )  # fmt: skip
    content = read(folder / "report.html")
    assert content["blocks"][0]["paragraphs"][0].startswith("completed: 4 of 4 steps in ")
    table = block(content, "After training")
    assert [column["name"] for column in table["columns"]] == ["metric", "held out", "test", "what it is"]
    result = json.loads((folder / "result.json").read_text())
    shown = {row["cells"][0][0]: (row["cells"][1][1], row["cells"][2][1]) for row in table["rows"]}
    assert shown["loss"] == (pytest.approx(result["eval"]["loss"]), pytest.approx(result["test"]["loss"]))
    curves = {of["group"]: of["values"]["loss"] for of in block(content, "Curves")["series"]}
    assert curves["held out"][0] == [0, 2, 4]
    assert curves["training"][0] == [1, 2, 3, 4]
    (first, second) = block(content, "Held-out prompts, answered greedily")["items"]
    assert [name for name, _ in first["texts"]] == [
        "before training", "after training", "chosen in the data", "rejected in the data",
    ]  # fmt: skip
    assert {first["prompt"], second["prompt"]} <= {row["prompt"] for row in uneven_rows(24)}
    command, *_ = block(content, "How it was made")["items"]
    assert "model=tiny" in command[1]


def test_a_sweeps_page_has_what_its_summary_has(tmp_path):
    folder = lambda_sweep(tmp_path / "sweep", declared=DECLARED)
    answer = write_summary(folder)
    content = read(folder / "report.html")
    assert content["blocks"][0]["paragraphs"] == answer.text.split("\n\n")
    settings = block(content, "Final held-out metrics")
    assert settings["values"] == {"loss.lam": ["0", "0.1", "1"]}
    of = settings["settings"][1]["metrics"]["rewards/accuracy"]
    assert (of["mean"], of["seeds"]) == (0.7, [["0", 0.69], ["1", 0.7], ["2", 0.71]])
    table = block(content, "Settings")
    best = [row for row in table["rows"] if row["best"]]
    assert [row["cells"][0][0] for row in best] == ["0.1"]
    assert len(block(content, "Points")["rows"]) == 9
    taken = dict(block(content, "To take along")["items"])
    assert r"\textbf{0.1} & \textbf{3} & \textbf{0.7000 $\pm$ 0.0248}" in taken["table as LaTeX"]
    rows = list(csv.DictReader(io.StringIO(taken["table as CSV"])))
    assert float(rows[1]["rewards/accuracy"]) == pytest.approx(0.7, rel=1e-12)
    assert float(rows[1]["rewards/accuracy low"]) == pytest.approx(0.7 - 0.0248, abs=1e-4)


def test_pairs_on_which_settings_differ_come_first_and_failures_tell_their_last_lines(tmp_path):
    points = [{"loss.lam": lam, "seed": "0"} for lam in ("0", "1", "2")]
    first, second, failed = make_sweep(tmp_path / "sweep", points)
    for place, margins in ((first, [1.0, 2.0, -1.0, 3.0]), (second, [1.0, -9.0, -2.0, 0.5])):
        accuracy = sum(of > 0 for of in margins) / 4
        make_run(place, {"rewards/accuracy": accuracy}, declared=DECLARED)
        make_pairs(place, {"rewards/margin": margins, "rewards/accuracy": [float(of > 0) for of in margins]})
    make_run(failed, {}, status="failed", error="Traceback\n  deep inside\nRuntimeError: no memory")
    write_summary(tmp_path / "sweep")
    content = read(tmp_path / "sweep" / "report.html")
    (only,) = block(content, "Where settings disagree most")["items"]
    assert only["name"].startswith("row 1:")
    assert dict(only["texts"])["settings"].splitlines() == [
        "loss.lam=0: 1 of 1 right, margin 2.0000", "loss.lam=1: 0 of 1 right, margin -9.0000",
    ]  # fmt: skip
    (error,) = block(content, "What went wrong")["items"]
    assert error == ["loss.lam=2, seed=0: RuntimeError: no memory", "Traceback\n  deep inside\nRuntimeError: no memory"]


def test_no_text_becomes_markup(tmp_path):
    folder = tmp_path / HOSTILE[2:20].replace("/", "")
    (place,) = make_sweep(folder, [{"loss.lam": "<img src=x>"}])
    make_run(place, {"rewards/accuracy": 0.5}, {"model": {"path": HOSTILE}}, error=HOSTILE, overrides=[HOSTILE])
    sample = {"prompt": HOSTILE, "answers": {HOSTILE[:50]: HOSTILE}, "chosen": HOSTILE, "rejected": HOSTILE}
    (place / "samples.json").write_text(json.dumps([sample]))
    write_run_page(place)
    write_summary(folder)
    for path in (place / "report.html", folder / "report.html"):
        assert HOSTILE[:40] in json.dumps(read(path), ensure_ascii=False).replace('\\"', '"')
    assert escaped("a_b & 5% \\ {x} ~^ ± $#") == (
        r"a\_b \& 5\% \textbackslash{} \{x\} \textasciitilde{}\textasciicircum{} $\pm$ \$\#"
    )


def test_folders_of_before_have_a_page_as_well_and_large_ones_a_small_one(tmp_path):
    assert thinned([(i, float(i)) for i in range(1000)], 5) == [[0, 250, 500, 749, 999], [0, 250, 500, 749, 999]]
    (place,) = make_sweep(tmp_path / "sweep", [{"seed": "0"}])
    curve = [{"step": i, "rewards/accuracy": i / 5000} for i in range(5000)]
    make_run(place, {"rewards/accuracy": 0.5}, evaluations=curve)
    write_summary(tmp_path / "sweep")
    (series,) = block(read(tmp_path / "sweep" / "report.html"), "Learning curves")["series"]
    assert len(series["values"]["rewards/accuracy"][0]) == 200
    empty = tmp_path / "empty"
    empty.mkdir()
    write_run_page(empty)
    assert read(empty / "report.html")["blocks"][0]["paragraphs"] == ["unknown: None of None steps in 0:00."]


def test_a_swept_key_with_a_metrics_name_keeps_its_column(tmp_path):
    folder = tmp_path / "sweep"
    points = [{"loss": loss, "seed": "0"} for loss in ("orpo", "dpo")]
    for i, place in enumerate(make_sweep(folder, points)):
        make_run(place, {"rewards/accuracy": 0.5 + i / 10, "loss": 1.0}, declared=DECLARED)
    write_summary(folder)
    heads = block(read(folder / "report.html"), "Settings")["columns"]
    of_loss = [(head["numeric"], head["further"]) for head in heads if head["name"] == "loss"]
    assert of_loss == [(False, False), (True, True)]  # the key, and the metric behind its switch


def test_long_errors_and_answers_leave_a_page_small(tmp_path):
    points = [{"loss.lam": str(i), "seed": "0"} for i in range(40)]
    for i, place in enumerate(make_sweep(tmp_path / "sweep", points)):
        failed = {"status": "failed", "error": "Traceback\nRuntimeError: " + "0.125, " * 20_000} if i % 2 else {}
        make_run(place, {"rewards/accuracy": 0.5}, **failed)
        answers = {"before training": "", "after training": "回答" * 5_000}
        sample = {"prompt": "提示", "answers": answers, "chosen": "一", "rejected": "二"}
        (place / "samples.json").write_text(json.dumps([sample]))
    write_summary(tmp_path / "sweep")
    page = tmp_path / "sweep" / "report.html"
    errors = block(read(page), "What went wrong")["items"]
    assert [name[:36] for name, _ in errors][:1] == ["loss.lam=1, seed=0: RuntimeError: 0."]
    assert all(len(name) < 400 and len(text) < 400 for name, text in errors)
    assert page.stat().st_size < 300_000
