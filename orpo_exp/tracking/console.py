"""What the screen shows of a run."""

import atexit
import io
import json
import math
import re
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree
from typing_extensions import override

from orpo_exp.schema import flat
from orpo_exp.tracking.base import TRACKERS, RunInfo, Tracker
from orpo_exp.tracking.jsonl import FILE, read_metrics
from orpo_exp.tracking.logs import CONSOLE, CONTROL, PAGES

CONTENTS = {
    "report.html": "how it went, as a page for a browser",
    "config.yaml": "the resolved configuration",
    "result.json": "how it ended: status, final metrics, speed, versions",
    "metrics.jsonl": "every logged number, one JSON object a line",
    "samples.md": "the same prompts answered before and after training",
    "plots": "the curves",
    "tensorboard": "the curves for TensorBoard",
    "wandb": "W&B's own files",
    "checkpoints": "where a stopped run goes on from",
    "model": "what was trained, for AutoModelForCausalLM (an adapter: AutoPeftModelForCausalLM)",
    "run.log": "what the console said",
}
PROGRESS = {"loss": "loss {:.4f}", "rewards/accuracy": "accuracy {:.2f}", "pairs_per_second": "{:,.4g} pairs/s"}
STYLES = {"completed": "bold green", "failed": "bold red"}
GUIDES = str.maketrans("│├└─", "    ")  # what a tree is drawn with


@TRACKERS.register("console")
class ConsoleTracker(Tracker):
    """The resolved configuration, one live progress bar, a table for each evaluation, and a last page.

    Where the output is no terminal it is plain lines without control characters.
    """

    @override
    def start(self, run: RunInfo) -> None:
        self._run = run
        self._last_line = (0, -float("inf"))  # step and time of the last progress line
        self._origin: tuple[int, float] | None = None  # step and time that speed is measured from
        # a resumed run compares with what was there before its training began, not before it went on
        self._evaluations = read_metrics(run.folder / FILE, "eval")
        self._test: dict[str, float] = {}

        self._bar: Progress | None = None
        if CONSOLE.is_interactive and CONSOLE.file.isatty():
            self._bar = Progress(
                *([BarColumn(None)] if CONSOLE.width >= 80 else []),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True)),
                console=CONSOLE,
                expand=True,
                refresh_per_second=4,
                redirect_stderr=sys.stderr.isatty(),  # what the user sends to a file goes on going there
            )
        self._show(configuration_tree(run))
        if self._bar is not None:
            self._task = self._bar.add_task("train", total=run.total_steps, numbers="")
            self._bar.start()
            CONSOLE.show_cursor(True)  # a run that is killed outright could not bring it back
            atexit.register(self._bar.stop)

    @override
    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Move the bar, or now and then print a line; print an evaluation's table."""
        if split == "train":
            self._progress(step, metrics)
            return
        if split == "test":
            self._test = dict(metrics)
            return
        self._evaluations.append({"step": step, **metrics})
        if step < self._run.total_steps:  # the last one is on the last page
            columns = {f"step {record['step']}": record for record in (self._evaluations[0], self._evaluations[-1])}
            self._show(Group(evaluation_table(columns), ""))

    @override
    def finish(self, result: Mapping[str, Any]) -> None:
        """Take the bar down and print the last page."""
        if self._bar is not None:
            self._bar.stop()
            atexit.unregister(self._bar.stop)
        status, total = str(result.get("status")), self._run.total_steps
        head = Text.assemble((status, STYLES.get(status, "bold yellow")), ending(result, total))
        page: list[RenderableType] = ["", head]
        if self._evaluations:
            first, last = self._evaluations[0], self._evaluations[-1]
            columns = {f"step {first['step']}" if first["step"] else "before training": first}
            if last is not first:
                columns[f"step {last['step']}" if last["step"] < total else "after training"] = last
            page += ["", evaluation_table(columns, {"test pairs": self._test} if self._test else {})]
        folder = self._run.folder.resolve()
        where = Text.assemble(("everything lies in ", "bold"), str(folder), no_wrap=True, overflow="ignore")
        page += ["", where, contents_table(folder)]
        self._show(Group(*page))

    def _show(self, page: RenderableType) -> None:
        """Print a page, as text where there is no terminal, and keep its text in run.log."""
        text = plain(page)
        PAGES.info("%s", text)
        if self._bar is not None:
            CONSOLE.print(page, crop=False)
        else:
            CONSOLE.print(Text(text), soft_wrap=True)

    def _progress(self, step: int, metrics: Mapping[str, float]) -> None:
        now, total = time.monotonic(), self._run.total_steps
        self._origin = self._origin or (step, now)
        shown = [words.format(metrics[name]) for name, words in PROGRESS.items() if name in metrics]
        if step > self._origin[0]:
            seconds_a_step = (now - self._origin[1]) / (step - self._origin[0])
            shown.append(f"{duration(seconds_a_step * (total - step))} left")
        numbers = "  ".join(shown)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
        # not more than a line every five seconds; of a long run one a minute or every twentieth of it
        last_step, last_time = self._last_line
        waited = now - last_time
        if step >= total or (waited >= 5 and (waited >= 60 or step - last_step >= total / 20)):
            self._last_line = (step, now)
            line = f"step {step}/{total} ({100 * step // max(total, 1)}%)  {numbers}"
            PAGES.info("%s", line)
            if self._bar is None:
                CONSOLE.print(Text(line), soft_wrap=True)


def configuration_tree(run: RunInfo) -> Tree:
    """The resolved configuration, a branch for each group."""
    choices = run.config.get("choices") or {}
    groups = {key: value for key, value in run.config.items() if isinstance(value, Mapping) and key != "choices"}
    run_wide = {key: value for key, value in run.config.items() if not isinstance(value, Mapping)}
    tree = Tree(Text(f"{run.experiment}, {run.total_steps:,} steps", "bold"), guide_style="dim")
    for group, content in {"run": run_wide, **groups}.items():
        several = content and all(isinstance(value, Mapping) for value in content.values())  # trackers: a key for each
        choice = ", ".join(content) if several else choices.get(group, "")
        branch = tree.add(Text.assemble((group, "cyan"), f": {choice}" if choice else ""))
        if settings := flat(content):
            said = [Text.assemble((f"{key}=", "dim"), typed(of), overflow="fold") for key, of in settings.items()]
            branch.add(Text("  ").join(said))
    return tree


def typed(value: Any) -> str:
    """A setting's value as one would type it."""
    if isinstance(value, str) and value and not re.search(r"\s", value):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def evaluation_table(
    columns: Mapping[str, Mapping[str, Any]], beside: Mapping[str, Mapping[str, Any]] | None = None
) -> Table:
    """The metrics of the first and the last evaluation, what changed between them, and those of others beside."""
    records, others = list(columns.values()), beside or {}
    titles = [*columns, *(["change"] if len(columns) > 1 else []), *others]
    right = [Column(title, justify="right") for title in titles]
    table = Table("held-out pairs", *right, box=None, pad_edge=False, header_style="bold")
    for name in records[-1]:
        if name not in ("step", "split", "time"):
            values = [record.get(name, math.nan) for record in records]
            change = [f"{values[-1] - values[0]:+.4f}"] if len(values) > 1 else []
            tested = [number(record.get(name, math.nan)) for record in others.values()]
            table.add_row(name, *map(number, values), *change, *tested)
    return table


def contents_table(folder: Path) -> Table:
    """What lies in the run's folder, of what a run may leave there."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, meaning in CONTENTS.items():
        if (path := folder / name).exists():
            table.add_row(name + "/" * path.is_dir(), Text(meaning, "dim"))
    return table


def ending(result: Mapping[str, Any], total_steps: int) -> str:
    """The rest of the sentence that begins with the status: how far, how long, how fast, what went wrong."""
    took = duration(result.get("wall_time_seconds", 0))
    parts = [f" after {result.get('steps', 0):,} of {total_steps:,} steps in {took}"]
    if result.get("pairs_per_second"):
        parts.append(PROGRESS["pairs_per_second"].format(result["pairs_per_second"]))
    if result.get("peak_memory_bytes"):
        parts.append(f"peak memory {decimal(result['peak_memory_bytes'])}")
    error = str(result.get("error") or "").strip()
    return ", ".join(parts) + (f"\n{error.splitlines()[-1]}" if error else "")


def plain(page: RenderableType) -> str:
    """A page as text, without colour and lines."""
    out = io.StringIO()
    Console(file=out, width=1000, color_system=None, force_terminal=False).print(page)
    text = CONTROL.sub("", out.getvalue()).translate(GUIDES)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def number(value: float) -> str:
    """A metric with the digits one reads."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    return str(timedelta(seconds=round(max(seconds, 0)))).removeprefix("0:").removeprefix("0")
