"""A sweep's answer in words: which setting is best and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orpo_exp.metrics import Direction
from orpo_exp.runs.states import FINE
from orpo_exp.sweeps.groups import Group, ranked
from orpo_exp.sweeps.results import Results
from orpo_exp.sweeps.statistics import Difference, Estimate, estimate
from orpo_exp.tracking.console import number

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
    ranking, behind = ranked(results.groups, metric, direction)
    said = [
        sentences(metric, direction, ranking, behind, left=bool(results.set_aside)),
        *on_test_pairs(metric, ranking),
        *on_the_race(results),
    ]
    text = " ".join(said)
    doubts = reservations(results, metric, ranking)
    return Headline(metric, direction, ranking, behind, f"{text}\n\nTake care: {' '.join(doubts)}" if doubts else text)


def sentences(
    metric: str, direction: Direction, ranking: Sequence[Group], behind: Sequence[Difference], left: bool
) -> str:
    """The best setting, the runner-up, and whether the seeds tell them apart. left: whether a race has set others
    aside."""
    if not ranking:
        return f"No completed point has the metric {metric} yet."
    better = "higher" if direction is Direction.max else "lower"
    found = [estimate(group.sample(metric)) for group in ranking]
    best = found[0]
    if len(ranking) == 1:
        there = "One setting is left" if left else "There is one setting"
        return f"{there}, {ranking[0].name}: {metric} is {in_words(best)}."
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


def on_the_race(results: Results) -> list[str]:
    """How many settings the race has set aside, and what that is worth; nothing where there are none."""
    out = results.set_aside
    if not out:
        return []
    names = f" ({'; '.join(group.name for group in out)})" if len(out) <= MOST_NAMES else ""
    return [
        f"A race set aside {counted(len(out), 'further setting')}{names}, clearly behind the best one of an earlier"
        " step. Curves may cross later: sweep.racing=false finishes what was set aside."
    ]


def counted(count: int, name: str) -> str:
    """`1 setting`, `2 settings`."""
    return f"{count} {name}{'' if count == 1 else 's'}"


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
    unfinished = sum(point.state not in FINE for point in results.points)
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


def cell(found: Estimate | Difference | None) -> str:
    """A mean with its interval: ± half of it where an estimate's is symmetric, else both ends, to be seen beside 0."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return number(found.mean)
    if isinstance(found, Estimate) and found.symmetric:
        return f"{number(found.mean)} ± {number(found.high - found.mean)}"
    return f"{number(found.mean)} [{number(found.low)}, {number(found.high)}]"
