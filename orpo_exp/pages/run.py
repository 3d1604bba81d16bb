"""The page of a run, from its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_exp.metrics import from_json
from orpo_exp.pages.document import REPORT, Block, cell, cut, thinned, written_page
from orpo_exp.pair_tables import PAIRS, SAMPLES, TEXTS, read_pairs, read_texts
from orpo_exp.runs.states import read_result
from orpo_exp.tracking.console import duration, number
from orpo_exp.tracking.jsonl import FILE, read_metrics

MOST_POINTS = 400  # of a curve
WORST = 20  # pairs
PROVENANCE = ("config_hash", "seed", "git", "versions", "hardware", "world_size", "host")


def write_run_page(folder: Path) -> None:
    """Write report.html into a run's folder, from what else lies there."""
    result = read_result(folder) or {}
    blocks = [
        {"kind": "text", "paragraphs": [ended(result)], "tone": "answer"},
        *numbers(result),
        *curves(folder),
        *samples(folder),
        *most_wrong(folder),
        configuration(folder, result),
    ]
    name = f"{folder.resolve().parent.name}, {folder.resolve().name}"
    written_page(folder / REPORT, name, ended(result), blocks)


def ended(result: Mapping[str, Any]) -> str:
    """How it went, in a sentence."""
    took = duration(result.get("wall_time_seconds", 0.0))
    said = f"{result.get('status', 'unknown')}: {result.get('steps')} of {result.get('total_steps')} steps in {took}."
    if (accuracy := (result.get("eval") or {}).get("rewards/accuracy")) is not None:
        said += f" The chosen answer has the higher reward in {100 * accuracy:.4g}% of the held-out pairs."
    return said


def numbers(result: Mapping[str, Any]) -> list[Block]:
    """The final metrics."""
    held_out, test = result.get("eval") or {}, result.get("test") or {}
    if not held_out:
        return []
    about = from_json(result.get("metrics"))
    names = ["metric", "held out", *(["test"] if test else []), "what it is"]
    rows = []
    for name, value in held_out.items():
        label = f"{about[name].label}{f', {about[name].unit}' if about[name].unit else ''}" if name in about else ""
        values = [value, test.get(name)] if test else [value]
        cells = [cell("" if of is None else number(of), of) for of in values]
        rows.append({"cells": [cell(name), *cells, cell(label)]})
    columns = [{"name": name, "numeric": name in ("held out", "test")} for name in names]
    return [{"kind": "table", "title": "After training", "columns": columns, "rows": rows}]


def curves(folder: Path) -> list[Block]:
    """Training and evaluation against steps."""
    series: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for split, said in (("eval", "held out"), ("train", "training")):
        records = read_metrics(folder / FILE, split)
        values: dict[str, Any] = {}
        for name in dict.fromkeys(name for record in records for name in record):
            of = [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]
            if name not in ("step", "time") and len(of) > 1:
                values[name] = thinned(of, MOST_POINTS)
        if values:
            series.append({"group": said, "seed": "", "values": values})
            names |= dict.fromkeys(values)
    first = [name for name in ("rewards/accuracy", "loss") if name in names]
    metrics = list(dict.fromkeys([*first, *names]))
    return (
        [{"kind": "curves", "title": "Curves", "metrics": metrics, "series": series, "on": ["held out", "training"]}]
        if series
        else []
    )


def samples(folder: Path) -> list[Block]:
    """Prompts answered before and after."""
    items = [
        {"prompt": cut(of["prompt"]), "texts": [*of["answers"].items(), *in_the_data(of["chosen"], of["rejected"])]}
        for of in read_samples(folder)
    ]
    return (
        [{"kind": "samples", "title": "Held-out prompts, answered greedily", "items": items, "first": 4}]
        if items
        else []
    )


def in_the_data(chosen: str, rejected: str) -> list[list[str]]:
    """A pair's answers by what they are called."""
    return [["chosen in the data", cut(chosen)], ["rejected in the data", cut(rejected)]]


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """What samples.json holds, nothing where a run has none."""
    path = folder / SAMPLES
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found


def most_wrong(folder: Path) -> list[Block]:
    """The held-out pairs whose rejected answer has the higher reward, the largest difference first."""
    table, texts = read_pairs(folder / PAIRS), read_texts(folder / TEXTS)
    if table is None or "rewards/margin" not in table.columns:
        return []
    margins = table.columns["rewards/margin"]
    worst = [(margins[i], int(table.rows[i])) for i in margins.argsort()[:WORST] if margins[i] < 0]
    items = []
    for margin, row in worst:
        prompt, chosen, rejected = texts.get(row, ("", "", ""))
        name = f"row {row}, margin {number(float(margin))}: {opening(prompt)}"
        items.append({"name": name, "texts": [["prompt", prompt], *in_the_data(chosen, rejected)]})
    wrong = int((margins <= 0).sum())
    note = f"{wrong} of {len(margins)} held-out pairs have no higher reward for the chosen answer; the worst of them."
    return [{"kind": "pairs", "title": "What it gets most wrong", "note": note, "items": items}] if items else []


def opening(text: str) -> str:
    """How a text begins, in a line."""
    return " ".join(text.split())[:70]


def configuration(folder: Path, result: Mapping[str, Any]) -> Block:
    """What was run, and with what."""
    items = [["where it comes from", json.dumps({key: result.get(key) for key in PROVENANCE}, indent=2)]]
    if overrides := result.get("overrides"):
        items.insert(0, ["command", " ".join(["python -m orpo_exp", *overrides])])
    if (path := folder / "config.yaml").exists():
        items.append(["config.yaml", path.read_text(encoding="utf-8")])
    if result.get("error"):
        items.insert(0, ["error", str(result["error"])])
    return {"kind": "code", "title": "How it was made", "items": items}
