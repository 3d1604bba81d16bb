"""A sweep's report.html: what its points' folders hold, as blocks of a page."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from orpo_exp.pages.document import REPORT, Block, cell, cut, last_lines, rounded, thinned, written_page
from orpo_exp.pages.run import in_the_data, opening, read_samples
from orpo_exp.pair_tables import TEXTS, read_texts
from orpo_exp.runs.states import FINE, how_many, read_result
from orpo_exp.sweeps.conditions import as_number, as_typed
from orpo_exp.sweeps.groups import Point
from orpo_exp.sweeps.headline import Headline, ahead
from orpo_exp.sweeps.headline import cell as written
from orpo_exp.sweeps.report import RACE, columns, costs, explanation, race_rows, what_was_swept
from orpo_exp.sweeps.results import Results
from orpo_exp.sweeps.statistics import Difference, Estimate
from orpo_exp.sweeps.tables import as_latex, as_table_csv
from orpo_exp.tracking.console import number
from orpo_exp.tracking.jsonl import FILE, read_metrics

NUMBERS = 120_000  # of all curves together: what keeps the page small
MOST_POINTS, FEWEST_POINTS = 200, 12  # of one curve
PROMPTS, SETTINGS = 8, 24  # that samples are shown of
ANSWER = 800  # characters: so many answers are no small part of a page
DISAGREE = 20  # pairs


def write_sweep_page(results: Results, answer: Headline, folder: Path) -> None:
    """Write report.html into `folder`."""
    completed = f"{len(results.points)} points: {how_many(p.state for p in results.points)}. {costs(results)}"
    blocks = [
        {"kind": "text", "paragraphs": answer.text.split("\n\n"), "tone": "answer"},
        {"kind": "text", "paragraphs": [completed]},
        *against(results, answer),
        *curves(results, answer),
        table(results, answer),
        *samples(results, answer),
        *disagreements(results, answer),
        *race(results),
        *failures(results, folder),
        points(results, folder),
        provenance(results, answer, folder),
    ]
    written_page(folder / REPORT, results.title, answer.text, blocks)


def against(results: Results, answer: Headline) -> list[Block]:
    """Each metric against each key."""
    first = columns(results, answer.metric)
    metrics = [*first, *sorted(results.measured - set(first))]
    settings = []
    for group in results.groups:
        estimates = {name: found for name in metrics if (found := group.estimate(name))}
        keys = results.keys or [""]
        others = {key: as_typed({k: v for k, v in group.setting.items() if k != key}) for key in keys}
        of = {
            name: {
                **{key: rounded(getattr(found, key)) for key in ("mean", "low", "high")},
                "method": found.method,
                "seeds": [[seed, rounded(value)] for seed, value in group.values(name).items()],
            }
            for name, found in estimates.items()
        }
        settings.append({"name": group.name, "setting": group.setting, "others": others, "metrics": of})
    if not settings or not metrics:
        return []
    values = {key: list(dict.fromkeys(group.setting[key] for group in results.groups)) for key in results.keys}
    note = "A diamond is the mean over seeds, the bar its 95% interval, a dot one seed."
    block = {"kind": "settings", "title": "Final held-out metrics", "note": note}
    return [block | {"metrics": metrics, "keys": results.keys or [""], "values": values, "settings": settings}]


def curves(results: Results, answer: Headline) -> list[Block]:
    """Held-out metrics against steps, of each counted point, and of those that a race has set aside."""
    metrics = columns(results, answer.metric)
    most = max(FEWEST_POINTS, min(MOST_POINTS, NUMBERS // max(1, 2 * len(metrics) * len(results.counted))))
    series = []
    for group in [*results.groups, *results.set_aside]:
        for point in group.points:
            records = read_metrics(point.folder / FILE, "eval")
            values = {}
            for name in metrics:
                of = [(record["step"], record[name]) for record in records if name in record]
                if len(of) > 1:
                    values[name] = thinned(of, most)
            if values:
                series.append({"group": group.name, "seed": point.seed, "values": values})
    note = "Means over the seeds that are shown; thin lines are single seeds. Of many settings the eight best are on."
    shown = [name for name in metrics if any(name in of["values"] for of in series)]
    block = {"kind": "curves", "title": "Learning curves", "note": note, "metrics": shown, "series": series}
    block["on"] = [group.name for group in answer.ranking[:8]] or [group.name for group in results.groups[:8]]
    return [block] if series else []


def table(results: Results, answer: Headline) -> Block:
    """The settings with all their metrics, of which the main ones are shown at first."""
    main = columns(results, answer.metric)
    metrics = [*main, *sorted(results.measured - set(main))]
    behind = {group.name: found for group, found in zip(answer.ranking[1:], answer.behind, strict=True)}
    rows = []
    for group in results.groups:
        best = bool(answer.ranking) and group is answer.ranking[0]
        estimates = [group.estimate(name) for name in metrics]
        lead = ahead(behind[group.name], answer.direction) if group.name in behind else None
        tested = group.tested(answer.metric)
        cells = [
            *(cell(value, as_number(value)) for value in group.setting.values()),
            cell(str(len(group.points)), len(group.points)),
            *(of_mean(found) for found in estimates),
            cell("best", 0.0) if best else of_mean(lead),
            of_mean(tested),
        ]
        rows.append({"cells": cells, "best": best})
    heads = [{"name": key, "numeric": False, "further": False} for key in results.keys]  # may have a metric's name
    heads.append({"name": "seeds", "numeric": True, "further": False})
    heads += [{"name": name, "numeric": True, "further": name not in main} for name in metrics]
    heads.append({"name": "lead", "numeric": True, "further": False})
    untested = not any(point.test for point in results.counted)
    heads.append({"name": f"test {answer.metric}", "numeric": True, "further": untested})
    title = "Settings"
    return {"kind": "table", "title": title, "note": plain(explanation(answer.metric)), "columns": heads, "rows": rows}


def plain(text: str) -> str:
    """Markdown's marks left out."""
    return text.replace("`", "").replace("*", "")


def of_mean(found: Estimate | Difference | None) -> list[Any]:
    """A mean with its interval, sorted by the mean."""
    return cell(written(found), found.mean if found else None)


def race(results: Results) -> list[Block]:
    """What was decided after each rung of a race."""
    rows = [
        {"cells": [cell(f"{of.share:g}", of.share), *map(cell, row)], "best": row[-1] == "best"}
        for of in results.decisions
        for row in race_rows(of)
    ]
    names = ["share of the steps", "setting", "seeds", "metric there", "the best one's lead", "decision"]
    heads = [{"name": name, "numeric": name in (names[0], *names[2:4])} for name in names]
    return [{"kind": "table", "title": "Race", "note": RACE, "columns": heads, "rows": rows}] if rows else []


def samples(results: Results, answer: Headline) -> list[Block]:
    """The same prompts answered by several settings, the best first, each by its first seed that has them."""
    ranked = [*answer.ranking, *(group for group in results.groups if group not in answer.ranking)][:SETTINGS]
    items: dict[str, dict[str, Any]] = {}
    for group in ranked:
        found = next((found for point in group.points if (found := read_samples(point.folder))), [])
        for of in found:
            item = items.setdefault(of["prompt"], {"prompt": cut(of["prompt"]), "texts": [], "given": of})
            answers = list(of["answers"].values())
            if answers:
                item["texts"].append([group.name, cut(answers[-1], ANSWER)])
    shown = sorted(items.values(), key=lambda item: -len(item["texts"]))[:PROMPTS]
    for item in shown:
        of = item.pop("given")
        item["texts"][2:2] = in_the_data(of["chosen"], of["rejected"])
    title = "Samples side by side"
    return [{"kind": "samples", "title": title, "items": shown, "first": 4}] if shown else []


def disagreements(results: Results, answer: Headline) -> list[Block]:
    """The pairs on which the settings differ most: in how many of them are right, then in their margins."""
    margins: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    where: dict[int, tuple[Point, int]] = {}
    for group in results.groups:
        for point in group.points:
            held_out = point.held_out
            if held_out is None or "rewards/margin" not in held_out.columns:
                continue
            of_pairs = held_out.columns["rewards/margin"].tolist()
            for key, row, margin in zip(held_out.keys.tolist(), held_out.rows.tolist(), of_pairs, strict=True):
                margins[key][group.name].append(margin)
                where.setdefault(key, (point, row))
    ranked = []
    for key, by_setting in margins.items():
        if len(by_setting) > 1:
            right = [sum(of > 0 for of in seeds) / len(seeds) for seeds in by_setting.values()]
            means = [sum(seeds) / len(seeds) for seeds in by_setting.values()]
            ranked.append((max(right) - min(right), max(means) - min(means), key))
    ranked.sort(key=lambda of: of[:2], reverse=True)
    texts: dict[Path, dict[int, tuple[str, str, str]]] = {}
    items = []
    for apart, _, key in ranked[:DISAGREE]:
        if apart == 0:
            break
        point, row = where[key]
        known = texts.setdefault(point.folder, read_texts(point.folder / TEXTS))
        prompt, chosen, rejected = known.get(row, ("", "", ""))
        said = sorted(margins[key].items(), key=lambda of: -sum(of[1]) / len(of[1]))
        lines = [
            f"{name}: {sum(of > 0 for of in seeds)} of {len(seeds)} right, margin {number(sum(seeds) / len(seeds))}"
            for name, seeds in said
        ]
        items.append({"name": f"row {row}: {opening(prompt)}", "texts": [
            ["settings", "\n".join(lines)], ["prompt", prompt], *in_the_data(chosen, rejected)]})  # fmt: skip
    note = "A pair is right where the chosen answer has the higher reward."
    title = "Where settings disagree most"
    return [{"kind": "pairs", "title": title, "note": note, "items": items}] if items else []


def failures(results: Results, folder: Path) -> list[Block]:
    """The points without a result that say why."""
    items = []
    for point in results.points:
        error = (read_result(point.folder) or {}).get("error") if point.state not in FINE else None
        if error:
            items.append([f"{label(point, results)}: {cut(point.reason or '', 300)}", last_lines(str(error))])
    return [{"kind": "code", "title": "What went wrong", "items": items}] if items else []


def label(point: Point, results: Results) -> str:
    """A point as one would type it."""
    said = [f"{key}={point.settings[key]}" for key in (*results.keys, "seed") if key in point.settings]
    return ", ".join(said) or point.folder.name


def points(results: Results, folder: Path) -> Block:
    """All points, what sets them apart, their state and cost."""
    rows = []
    for point in results.points:
        cells = [
            *(cell(point.settings.get(key, ""), as_number(point.settings.get(key, ""))) for key in results.keys),
            cell(point.seed, as_number(point.seed)),
            cell(point.state),
            cell((point.reason or "")[:300]),
            cell(str(point.steps), point.steps),
            cell(number(point.seconds), point.seconds),
            cell(os.path.relpath(point.folder, folder)),
        ]
        rows.append({"cells": cells})
    names = [*results.keys, "seed", "state", "why", "steps", "seconds", "folder"]
    heads = [{"name": name, "numeric": name in ("seed", "steps", "seconds")} for name in names]
    return {"kind": "table", "title": "Points", "columns": heads, "rows": rows}


def provenance(results: Results, answer: Headline, folder: Path) -> Block:
    """The table to be taken along, and what was run, with what."""
    items = [["table as LaTeX", as_latex(results, answer)], ["table as CSV", as_table_csv(results, answer)]]
    items.append(["what was varied", plain(what_was_swept(results))])
    found = [(point, read_result(point.folder) or {}) for point in results.points]
    for key in ("git", "versions", "hardware"):
        kinds: dict[str, list[str]] = defaultdict(list)
        for point, result in found:
            if key in result:
                kinds[json.dumps(result[key], indent=2, sort_keys=True)].append(label(point, results))
        said = [text if len(kinds) == 1 else f"{'; '.join(of)}:\n{text}" for text, of in kinds.items()]
        if said:
            items.append([key if len(kinds) == 1 else f"{key}: points differ", "\n\n".join(said)])
    sweep = folder / "sweep.json"
    if sweep.exists():
        overrides = json.loads(sweep.read_text(encoding="utf-8")).get("overrides", [])
        items.append(["command", " ".join(["python -m orpo_exp --multirun", *overrides])])
    return {"kind": "code", "title": "To take along", "items": items}
