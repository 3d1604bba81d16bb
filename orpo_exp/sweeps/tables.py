"""A sweep's table of settings, to be taken along: in LaTeX and as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from orpo_exp.sweeps.groups import Group
from orpo_exp.sweeps.headline import Headline, cell
from orpo_exp.sweeps.report import columns
from orpo_exp.sweeps.results import Results


def rows_of(results: Results, answer: Headline) -> tuple[list[str], list[tuple[Group, list[Any]]]]:
    """The heads of the main table, and each setting with its estimates."""
    metrics = columns(results, answer.metric)
    rows = [(group, [group.estimate(name) for name in metrics]) for group in results.groups]
    return [*results.keys, "seeds", *metrics], rows


def as_latex(results: Results, answer: Headline) -> str:
    """For the package booktabs."""
    heads, rows = rows_of(results, answer)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    lines = [rf"\begin{{tabular}}{{{'l' * len(results.keys)}{'r' * (len(heads) - len(results.keys))}}}", r"\toprule"]
    lines += [line([escaped(head) for head in heads]), r"\midrule"]
    for group, estimates in rows:
        values = ["" if e is None else cell(e) for e in estimates]
        cells = [escaped(of) for of in (*group.setting.values(), str(len(group.points)), *values)]
        best = answer.ranking and group is answer.ranking[0]
        lines.append(line([rf"\textbf{{{of}}}" if best and of else of for of in cells]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def escaped(text: str) -> str:
    """Text as LaTeX takes it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    special |= {of: rf"\{of}" for of in "&%$#_{}"}
    return "".join(special.get(letter, letter) for letter in text)


def as_table_csv(results: Results, answer: Headline) -> str:
    """Means with both ends of their intervals."""
    heads, rows = rows_of(results, answer)
    metrics = heads[len(results.keys) + 1 :]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*results.keys, "seeds", *(f"{name}{end}" for name in metrics for end in ("", " low", " high"))])
    for group, estimates in rows:
        values = [getattr(found, end, None) for found in estimates for end in ("mean", "low", "high")]
        writer.writerow([*group.setting.values(), len(group.points), *("" if of is None else of for of in values)])
    return out.getvalue()
