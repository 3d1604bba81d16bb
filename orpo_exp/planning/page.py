"""What a plan looks like."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from orpo_exp.launchers import Finding
from orpo_exp.planning.figures import NAMES, Figures, Memory

NOT_KNOWN = "not known"
HEAD = "A plan; nothing was started."


def page(figures: Figures, findings: Sequence[Finding], time_limit: float | None) -> RenderableType:
    """That of one run."""
    parts: list[RenderableType] = [Text(HEAD, "bold"), "", lines(counted(figures)), ""]
    parts += [Text(f"memory of each rank, on {figures.memory.device}, {figures.ranks:,} in all", "bold")]
    parts += [lines(memory_lines(figures.memory), right=True), verdict(figures.memory), ""]
    if figures.time is None:
        parts += [Text.assemble(("time", "bold"), f"  not told: {figures.untimed}")]
    else:
        parts += [Text("time", "bold"), lines(time_lines(figures), right=True)]
    parts += [Text(note) for note in figures.notes]
    if findings:
        parts += ["", Text("Slurm", "bold"), *(finding_line(of) for of in [*findings, *cut_off(figures, time_limit)])]
    return Group(*parts)


def counted(of: Figures) -> dict[str, str]:
    """What the data come to."""
    size = "endless" if of.pairs is None else f"{of.pairs:,}"
    epochs = "" if of.epochs is None else f", {of.epochs:.3g} epochs"
    done = f"; {of.done:,} of them are behind a checkpoint" if of.done else ""
    each = f" of {decimal(of.checkpoint_bytes)}" if of.checkpoint_bytes else ""
    of_what = "in all" if of.pairs is None else "an epoch"
    pairs, positions = of.largest
    return {
        "model": of.model,
        "data": f"{size} training pairs, {of.held_out:,} held out; {of.cut:,} cut, {of.skipped:,} skipped",
        "steps": f"{of.steps:,} of {of.batch:,} pairs{epochs}{done}",
        "besides": f"{of.evaluations:,} evaluations, {of.checkpoints:,} checkpoints{each}",
        "tokens": f"{of.tokens:,} {of_what}, each prompt once",
        "layout": f"{of.layout}: {of.padding:.0%} padding, {of.spared:.0%} less to compute than padded",
        "micro-batches": f"{of.rounds:,} a step at most; the largest has {pairs:,} pairs, {positions:,} positions",
    }


def memory_lines(memory: Memory) -> dict[str, str]:
    """Its parts, what they come to and what there is."""
    said = {}
    for name, text in NAMES.items():
        if name in memory.parts and memory.parts[name] != 0:
            where = " (host)" if name in memory.on_host else ""
            said[f"{text}{where}"] = sized(memory.parts[name])
    said["together"] = sized(memory.together)
    if memory.seen is not None:
        said["seen in the steps timed"] = sized(memory.seen)
    if memory.there is not None:
        said["there is" if memory.ranks == 1 else f"there is for {memory.ranks} ranks"] = sized(memory.there)
    return said


def verdict(memory: Memory) -> Text:
    """Whether it fits."""
    return {
        True: Text("It fits.", "green"),
        False: Text("It does not fit.", "bold red"),
        None: Text("Whether it fits is not known: the device is not here.", "yellow"),
    }[memory.fits]


def time_lines(figures: Figures) -> dict[str, str]:
    """How long what takes."""
    of = figures.time
    assert of is not None
    left = figures.steps - figures.done
    said = {
        "start": span(of.start),
        f"{left:,} steps": f"{span(left * of.step)}, {seconds(of.step)} each, from {of.steps} of them",
        f"{figures.evaluations:,} evaluations": f"{span(figures.evaluations * of.evaluation)}",
        f"{figures.checkpoints:,} checkpoints": f"{span(figures.checkpoints * of.checkpoint)}",
        "end": span(of.end),
        "in all": span(figures.seconds),
    }
    return {name: text for name, text in said.items() if not name.startswith("0 ")}


def cut_off(figures: Figures, time_limit: float | None) -> list[Finding]:
    """Whether the run comes to its end in one go."""
    if time_limit is None:
        return []
    if figures.seconds is None:
        text = f"How long a run takes is told where its device is; one cut off after {span(time_limit)} is requeued."
        return [Finding(True, text)]
    if figures.seconds <= time_limit:
        return [Finding(True, f"It ends within the time limit of {span(time_limit)}.")]
    times = int(figures.seconds // time_limit)
    return [
        Finding(True, f"The time limit of {span(time_limit)} cuts it off {times} times; it is requeued and goes on.")
    ]


def finding_line(of: Finding) -> Text:
    """A finding, marked."""
    return Text.assemble("  ", Text(of.text) if of.fine else Text(f"No: {of.text}", "bold red"))


def sweep_page(
    planned: Mapping[str, Figures], at_a_time: int, findings: Sequence[Finding], time_limit: float | None
) -> RenderableType:
    """That of several: a line for each."""
    table = Table(box=None, pad_edge=False)
    table.add_column("point", overflow="fold")
    for name in ("steps", "memory", "", "time"):
        table.add_column(name, justify="right")
    fit = {True: "fits", False: "does not fit", None: ""}
    for name, of in planned.items():
        most, total = sized(of.memory.most), span(of.seconds)
        style = "bold red" if of.memory.fits is False else ""
        table.add_row(Text(name), f"{of.steps:,}", most, Text(fit[of.memory.fits], style), total)
    parts: list[RenderableType] = [Text(HEAD, "bold"), "", table, "", Text(in_all(planned, at_a_time))]
    parts += [Text(note) for note in dict.fromkeys(note for of in planned.values() for note in of.notes)]
    if findings:
        longest = max(planned.values(), key=lambda of: of.seconds or 0)
        parts += ["", Text("Slurm", "bold"), *(finding_line(of) for of in [*findings, *cut_off(longest, time_limit)])]
    return Group(*parts)


def in_all(planned: Mapping[str, Figures], at_a_time: int) -> str:
    """How long all points take, one after another and side by side."""
    times = [of.seconds for of in planned.values()]
    known = [of for of in times if of is not None]
    if len(known) < len(times):
        untimed = next(of.untimed for of in planned.values() if of.seconds is None)
        return f"{len(times)} points to run; how long they take is not told: {untimed}."
    together = f"{len(times)} points to run: {span(sum(known))} one after another"
    if at_a_time == 1:
        return f"{together}."
    lanes = [0.0] * at_a_time
    for of in known:  # each begins where one has ended
        lanes[lanes.index(min(lanes))] += of
    return f"{together}; {span(max(lanes))} {at_a_time} at a time, if each is then as fast as it is alone."


def lines(said: Mapping[str, str], right: bool = False) -> Table:
    """Names and what is said of them."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, text in said.items():
        table.add_row(Text(f"  {name}" if right else name, "" if right else "bold"), Text(text))
    return table


def sized(size: int | None) -> str:
    """Bytes, for people."""
    return NOT_KNOWN if size is None else decimal(size)


def seconds(number: float) -> str:
    """A short time."""
    return f"{number:.3g} s"


def span(number: float | None) -> str:
    """A time of any length, for people."""
    if number is None:
        return NOT_KNOWN
    if number < 60:
        return seconds(number)
    minutes = round(number / 60)
    hours, days = minutes // 60, minutes // 1440
    if minutes < 60:
        return f"{number / 60:.2g} min" if number < 600 else f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 2 else f"{days} d {hours % 24} h"
