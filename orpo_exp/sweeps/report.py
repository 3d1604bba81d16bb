"""summary.md: a sweep's answer, its tables and pictures as a page in Markdown."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from orpo_exp.metrics import Direction
from orpo_exp.runs.states import State, how_many
from orpo_exp.sweeps.conditions import as_typed
from orpo_exp.sweeps.decisions import Decision
from orpo_exp.sweeps.groups import ordered
from orpo_exp.sweeps.headline import Headline, ahead, cell, different_ways
from orpo_exp.sweeps.results import Results
from orpo_exp.tracking.console import number

# the metrics that the table has columns for, beside the one that ranks
MAIN = ("rewards/accuracy", "logps/accuracy", "rewards/margin", "nll_loss", "logps/chosen")
RACE = (
    "A setting is set aside, with all its seeds, where the interval of the best one's lead over it lies above 0 at a"
    " rung. Of these intervals all rungs share an error of 5%: whichever setting is truly the best at a rung is set"
    " aside in no more of all races. That is all that is promised: curves may cross after the rung."
)


def race(results: Results) -> list[str]:
    """What was decided after each rung of a race, as the part of a page; nothing without a race."""
    if not results.decisions:
        return []
    parts = ["## Race", RACE]
    for of in results.decisions:
        better = "higher" if of.direction is Direction.max else "lower"
        rows = [["setting", "seeds", of.metric, "the best one's lead", ""], *race_rows(of)]
        parts.append(f"After {of.share:g} of the steps, by {of.metric} ({better} is better):\n\n{table(rows)}")
    return parts


def race_rows(of: Decision) -> list[list[str]]:
    """A row for each setting that was still in the race."""
    return [
        [
            standing.name,
            str(standing.seeds),
            number(standing.mean),
            cell(standing.lead),
            "set aside" if standing.out else "" if standing.lead else "best",
        ]
        for standing in of.standings
    ]


def page(results: Results, answer: Headline, pictures: Mapping[Path, str], folder: Path, rebuild: str) -> str:
    """summary.md. pictures: file to what it shows. folder: where the page will lie. rebuild: the command for it."""
    completed = sum(point.state is State.completed for point in results.points)
    others = [name for name in columns(results, answer.metric) if name != answer.metric]
    parts = [
        f"# {results.title}",
        answer.text,
        what_was_swept(results),
        f"{completed} of {len(results.points)} points are completed: {how_many(p.state for p in results.points)}.",
        "## Settings",
        explanation(answer.metric),
        settings_table(results, answer),
        *(f"Take care: {said}" for name in others for said in different_ways(results, name)),
        *(f"![{path.stem}]({os.path.relpath(path, folder)})\n\n*{text}*" for path, text in pictures.items()),
        *race(results),
        *unfinished(results, folder),
        "## What it cost",
        costs(results),
        "## Files",
        "`summary.csv` has a row for each point with all its final metrics, `summary.json` everything on this page and"
        f" all other metrics. To make them anew from the runs' folders:\n\n```bash\n{rebuild}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def explanation(metric: str) -> str:
    """What the table's intervals are."""
    return (
        "Held-out metrics after training: mean over seeds with its 95% interval. It knows of both kinds of chance,"
        " which seeds were run and which pairs held out, where runs have written down their pairs (`pairs.parquet`)"
        " and the metric is a mean over them or their tokens; else of seeds alone (Student's t below 10 seeds,"
        " bootstrap from 10 on). With one seed it speaks for that seed. *Lead* is how far the best setting's"
        f" {metric} lies from the row's, with its 95% interval; one that includes 0 means the two are not told"
        " apart. Its end on that side holds for all rows at once, the best having been picked from the same"
        " numbers. Runs with one seed share their luck and pairs, and the lead compares pair by pair: it may be"
        " clear although the settings' own intervals overlap."
    )


def what_was_swept(results: Results) -> str:
    """The swept keys and their values; what else varied; what was left out."""
    lines = []
    for key in results.keys:
        settings = [*results.groups, *results.set_aside]
        values = ordered(group.setting[key] for group in settings)
        lines.append(f"* `{key}`: {', '.join(values) or 'no completed point yet'}")
    seeds = dict.fromkeys(point.seed for point in results.points if point.seed)
    lines.append(f"* `seed`: {', '.join(sorted(seeds, key=lambda seed: (len(seed), seed))) or 'unknown'}")
    if results.along:
        keys = ", ".join(f"`{key}`" for key in results.along)
        lines.append(f"* settled by the above, and varying with it: {keys}")
    if results.repeated:
        lines.append(f"* {len(results.repeated)} points repeat a setting and a seed; each is counted once")
    return "What was varied:\n\n" + "\n".join(lines)


def columns(results: Results, metric: str) -> list[str]:
    """The metrics that stand side by side: the one that ranks, then the main ones, as far as a point has them."""
    return [name for name in dict.fromkeys((metric, *MAIN)) if name in results.measured]


def settings_table(results: Results, answer: Headline) -> str:
    """A row for each setting, the best one in bold."""
    if not results.groups:
        return "No point is completed yet."
    metrics = columns(results, answer.metric)
    behind = {group.name: found for group, found in zip(answer.ranking[1:], answer.behind, strict=True)}
    leads = {name: cell(ahead(found, answer.direction)) for name, found in behind.items()}
    rows = [[*(f"`{key}`" for key in results.keys), "seeds", *metrics, "lead"]]
    for group in results.groups:
        cells = [*group.setting.values(), str(len(group.points)), *(cell(group.estimate(name)) for name in metrics)]
        if answer.ranking and group is answer.ranking[0]:
            rows.append([f"**{text}**" if text else "" for text in [*cells, "best"]])
        else:
            rows.append([*cells, leads.get(group.name, "")])
    return table(rows)


def unfinished(results: Results, folder: Path) -> list[str]:
    """The points without a result, with the reason and where to look."""
    points = [point for point in results.points if point.state is not State.completed]
    if not points:
        return []
    rows = [["point", "state", "why", "folder"]]
    for point in points:
        name = as_typed({key: point.settings[key] for key in (*results.keys, "seed") if key in point.settings})
        place = os.path.relpath(point.folder, folder)
        rows.append([name or point.folder.name, point.state, (point.reason or "")[:300], f"`{place}`"])
    advice = (
        "The sweep's own command, given again, runs what is missing, failed, interrupted or killed, and nothing else;"
        " with sweep.racing=false also what was set aside."
    )
    return ["## Points without a result", table(rows), advice]


def costs(results: Results) -> str:
    """Wall time of all points and what they kept busy meanwhile."""
    said = [f"Wall time of all points together, every attempt counted: {number(results.seconds / 3600)} hours."]
    if results.gpu_hours:
        gpu_hours = number(results.gpu_hours)
        said.append(f"GPU hours (a run's processes, each on its GPU, times its wall time): {gpu_hours}.")
    if results.core_hours or not results.gpu_hours:
        core_hours = number(results.core_hours)
        said.append(f"Core hours of runs without a GPU (the cores a run may use, times its wall time): {core_hours}.")
    return " ".join(said)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first row the head."""
    escaped = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
