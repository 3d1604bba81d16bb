"""What a sweep says, in words: which setting is best and how sure that is, as a page in Markdown."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orpo_exp.metrics import Direction
from orpo_exp.runs.states import State, how_many
from orpo_exp.sweeps.results import Group, Results
from orpo_exp.sweeps.statistics import Difference, Estimate, estimate, leads
from orpo_exp.tracking.console import number

# the metrics that the table has columns for, beside the one that ranks
MAIN = ("rewards/accuracy", "logps/accuracy", "rewards/margin", "nll_loss", "logps/chosen")
FEW = 5  # seeds; with fewer an interval rests on a guess of the spread
MOST_NAMES = 6  # settings, or ways to compute a metric, named in a sentence


@dataclass(frozen=True)
class Headline:
    """The settings ranked by one metric. direction: its good end. ranking: the best first, those without the metric
    left out. behind: for each but the best, how its metric differs from the best's (best less other). text: plain
    sentences.
    """

    metric: str
    direction: Direction
    ranking: list[Group]
    behind: list[Difference]
    text: str


def headline(results: Results, metric: str, direction: Direction) -> Headline:
    """Rank the settings and say in words what the ranking is worth."""
    sign = -1.0 if direction is Direction.max else 1.0
    means = {group.name: found.mean for group in results.groups if (found := group.estimate(metric))}
    ranking = sorted((g for g in results.groups if g.name in means), key=lambda group: sign * means[group.name])
    samples = [group.sample(metric) for group in ranking]
    behind = leads(samples[0], samples[1:], -sign) if samples else []
    text = " ".join([sentences(metric, direction, ranking, behind), *on_test_pairs(metric, ranking)])
    doubts = reservations(results, metric, ranking)
    return Headline(metric, direction, ranking, behind, f"{text}\n\nTake care: {' '.join(doubts)}" if doubts else text)


def sentences(metric: str, direction: Direction, ranking: Sequence[Group], behind: Sequence[Difference]) -> str:
    """The best setting, the runner-up, and whether the seeds tell them apart."""
    if not ranking:
        return f"No completed point has the metric {metric} yet."
    better = "higher" if direction is Direction.max else "lower"
    found = [estimate(group.sample(metric)) for group in ranking]
    best = found[0]
    if len(ranking) == 1:
        return f"There is one setting, {ranking[0].name}: {metric} is {in_words(best)}."
    level = [group for group, mean in zip(ranking, found, strict=True) if mean.mean == best.mean]
    if len(level) > 1:
        named = f": {'; '.join(group.name for group in level)}" if len(level) <= MOST_NAMES else ""
        shared = f"{len(level)} settings share the best {metric} ({better} is better), {number(best.mean)} on average"
        said = [f"{shared}{named}. None of them is ahead."]
    else:
        said = [
            f"Best by {metric} ({better} is better): {ranking[0].name} with {in_words(best)}.",
            f"The runner-up is {ranking[1].name} with {in_words(found[1])}.",
            told_apart(ahead(behind[0], direction)),
        ]
    alike = [g.name for g, lead in zip(ranking[1:], behind, strict=True) if not lead.clear and lead.low is not None]
    if len(alike) > 1:
        names = "; ".join(alike) if len(alike) <= MOST_NAMES else f"{len(alike)} of the {len(behind)} other settings"
        said.append(f"Not told apart from the best: {names}.")
    return " ".join(said)


def on_test_pairs(metric: str, ranking: Sequence[Group]) -> list[str]:
    """What the setting that the held-out pairs chose comes to on pairs that had no part in that."""
    found = ranking[0].tested(metric) if ranking else None
    return [f"On the test pairs {ranking[0].name} has {in_words(found)}."] if found else []


def different_ways(results: Results, metric: str) -> list[str]:
    """That settings compute a metric in different ways, where they do: which ones, and how."""
    ways = results.definitions(metric)
    if len(ways) < 2:
        return []
    said = [
        f"{way or 'not said how'} ({'; '.join(names) if len(names) <= MOST_NAMES else f'{len(names)} settings'})"
        for way, names in list(ways.items())[:MOST_NAMES]
    ]
    more = [f"{len(ways) - MOST_NAMES} further ways"] if len(ways) > MOST_NAMES else []
    return [
        f"{metric} is computed in different ways, and compares only settings that do so alike:"
        f" {'; '.join([*said, *more])}."
    ]


def reservations(results: Results, metric: str, ranking: Sequence[Group]) -> list[str]:
    """What to bear in mind: what is missing, what does not compare, how few the seeds are."""
    unfinished = sum(point.state is not State.completed for point in results.points)
    said = [f"{unfinished} of {len(results.points)} points have no result."] if unfinished else []
    said += different_ways(results, metric)
    counts = [len(group.values(metric)) for group in ranking]
    if len(set(counts)) > 1:
        said.append(f"The settings have different numbers of seeds, {min(counts)} to {max(counts)}.")
    if counts and 1 < min(counts) < FEW:
        said.append(f"{min(counts)} seeds are few: how much seeds differ is itself a rough guess here.")
    if len(counts) > 2:
        said.append(
            f"The best of {len(counts)} settings was picked by these same numbers, which flatters its own value a"
            " little; the lead's interval allows for that."
        )
    return said


def ahead(behind: Difference, direction: Direction) -> Difference:
    """The best setting's lead, positive where it is ahead: the difference turned round where low is good."""
    if direction is Direction.max:
        return behind
    low, high = (None, None) if behind.low is None or behind.high is None else (-behind.high, -behind.low)
    return replace(behind, mean=-behind.mean, low=low, high=high)


def told_apart(lead: Difference) -> str:
    """Whether the best and the runner-up differ by more than chance does, for whom that is said, and what it lacks."""
    side = "ahead" if lead.mean >= 0 else "behind"
    if lead.low is None or lead.high is None:
        return (
            f"The best is {side} by {number(abs(lead.mean))}, and nothing tells whether that is chance: {lacks(lead)}."
        )
    where = (
        " over their common seeds" if lead.common and lead.n > 1 else " over seeds that differ" if lead.n > 1 else ""
    )
    verdict = "leaves 0 out: they are told apart" if lead.clear else "includes 0: they are not told apart"
    sentences = [
        f"The best is {side} by {number(abs(lead.mean))}{where}, with a 95% interval of the lead from"
        f" {number(lead.low)} to {number(lead.high)} ({lead.method}). That {verdict}{speaks_for(lead)}."
    ]
    if not lead.clear and lead.mean > 0:
        seeds, pairs = lead.seeds_needed(), lead.pairs_needed()
        ways = [f"about {seeds} seeds each"] if seeds else []
        ways += [f"about {pairs:,} held-out pairs"] if pairs else []
        if ways:
            sentences.append(f"Were the lead to stay what it is, {', or '.join(ways)} would tell them apart.")
    return " ".join(sentences)


def lacks(lead: Difference) -> str:
    """Why a lead has no interval, and what would give it one."""
    if lead.n > 1:
        return "it is the same for each seed"
    return "one of the two has a single seed, so give both more (seed=0,1,2)"


def speaks_for(lead: Difference) -> str:
    """For which seeds and pairs an interval is said to hold."""
    if lead.n == 1:
        return f", for these very runs on other pairs than these {lead.pairs:,}; of other seeds it says nothing"
    if lead.pairs:
        return ", for other seeds and other pairs"
    return ", for other seeds on pairs like these; what is known of the runs does not tell what the pairs do"


def in_words(found: Estimate) -> str:
    """A mean with its interval, for a sentence."""
    if found.low is None:
        why = "one seed" if found.n == 1 else f"the same for all {found.n} seeds"
        return f"{cell(found)} ({why}, so no interval)"
    return f"{cell(found)} (95% interval, {found.method})"


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
        values = dict.fromkeys(group.setting[key] for group in results.groups)
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


def cell(found: Estimate | Difference | None) -> str:
    """A mean with its interval: ± half of it where an estimate's is symmetric, else both ends, to be seen beside 0."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return number(found.mean)
    if isinstance(found, Estimate) and found.symmetric:
        return f"{number(found.mean)} ± {number(found.high - found.mean)}"
    return f"{number(found.mean)} [{number(found.low)}, {number(found.high)}]"


def unfinished(results: Results, folder: Path) -> list[str]:
    """The points without a result, with the reason and where to look."""
    points = [point for point in results.points if point.state is not State.completed]
    if not points:
        return []
    rows = [["point", "state", "why", "folder"]]
    for point in points:
        name = ", ".join(f"{key}={point.settings[key]}" for key in (*results.keys, "seed") if key in point.settings)
        place = os.path.relpath(point.folder, folder)
        rows.append([name or point.folder.name, point.state, (point.reason or "")[:300], f"`{place}`"])
    advice = (
        "The sweep's own command, given again, runs what is missing, failed, interrupted or killed, and nothing else."
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
