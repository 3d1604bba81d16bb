"""The forms that preference data come in, recognised by their columns: rows -> pairs.

Those that have both answers in a row, as chosen and rejected, are in rows.py; here are the others, and which is which.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from orpo_exp.data.reading import Broken, Row
from orpo_exp.data.rows import (
    PROMPT_COLUMNS,
    Unreadable,
    UnusableRow,
    as_pair,
    is_text,
    parse_row,
    split_shared_text,
    split_shared_turns,
    text_or_turns,
)
from orpo_exp.types import Message, PreferencePair

AUTO = "auto"
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
SCORES = ("overall_score", "fine-grained_score", "score", "rating")
ANSWERS = ("response", "content", "text")
LOOKED_AT = 100  # rows that say which columns there are


@dataclass
class Found:
    """What rows come to. pairs: the usable ones, as they are read; what else is here is complete when they are at their
    end. The numbers of the other rows, by reason; broken: of those that did not come as they were written, skipped: of
    those that make no pair. rows: how many there were."""

    pairs: Iterator[PreferencePair]
    broken: dict[str, list[int]] = field(default_factory=dict)
    skipped: dict[str, list[int]] = field(default_factory=dict)
    rows: int = 0


@dataclass(frozen=True)
class Form:
    """columns: that rows have; of a tuple within, one. pair: a row, with its number before and the seed behind it, to a
    pair; or, with `joined`, to a part of one. looks: whether such a row is of this form, where columns do not tell.
    drawn: whether the seed decides anything."""

    columns: tuple[str | tuple[str, ...], ...]
    pair: Callable[[int, Row, int], Any]
    looks: Callable[[Row], bool] = lambda row: True
    joined: Callable[[Sequence[Any], dict[str, list[int]]], list[PreferencePair]] | None = None
    drawn: bool = False

    def has_columns(self, columns: set[str]) -> bool:
        """Whether rows with these columns may be of this form."""
        return all(columns & {of} if isinstance(of, str) else columns & set(of) for of in self.columns)


def with_prompt(column: str) -> Callable[[int, Row, int], PreferencePair]:
    """A row with both answers, and the prompt in this column; in a row without it, in another that may have one."""

    def parse(number: int, row: Row, seed: int) -> PreferencePair:
        found = next((of for of in (column, *PROMPT_COLUMNS) if row.get(of) is not None), column)
        kept = {name: row.get(name) for name in ("chosen", "rejected", "system", found)}
        return parse_row(number, kept)

    return parse


def parse_implicit(number: int, row: Row, seed: int) -> PreferencePair:
    """A row with nothing but both answers, each with the prompt before it: what both begin with, as in TRL."""
    chosen, rejected, system = (row.get(name) for name in ("chosen", "rejected", "system"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        return as_pair(number, *split_shared_text(chosen, rejected), system)
    return parse_row(number, {"chosen": chosen, "rejected": rejected, "system": system})


def transcripts(number: int, row: Row, seed: int) -> PreferencePair:
    """HH's form: whole conversations as text (Bai et al. 2022, arXiv 2204.05862)."""

    def turns(text: Any, side: str) -> list[Message]:
        if not isinstance(text, str):
            raise UnusableRow(f"no {side}")
        start, *parts = SPEAKER.split(text)
        if start.strip() or not parts:
            raise UnusableRow(f"{side} does not begin with a speaker")
        spoken = zip(parts[::2], parts[1::2], strict=True)
        return [Message(role=HH_ROLES[who], content=said.strip()) for who, said in spoken]

    return parse_row(number, {side: turns(row.get(side), side) for side in ("chosen", "rejected")})


def completions(number: int, row: Row, seed: int) -> PreferencePair:
    """UltraFeedback's form: several scored answers (Cui et al. 2023, arXiv 2310.01377). The best is set against one of
    the others, which the seed chooses; one with the score of the best is not chosen."""
    prompt = row.get("prompt") or row.get("instruction")
    given = row.get("completions")
    if not isinstance(prompt, str) or not isinstance(given, list):
        raise UnusableRow("no prompt" if not isinstance(prompt, str) else "completions is no list")
    scored = []
    for of in given:
        text = next((of[name] for name in ANSWERS if isinstance(of.get(name), str)), None) if is_row(of) else None
        score = next((number_of(of[name]) for name in SCORES if of.get(name) is not None), None) if is_row(of) else None
        if text is not None and score is not None:
            scored.append((score, text))
    if not scored:
        raise UnusableRow(f"no completion with a score ({', '.join(SCORES)}) and a text ({', '.join(ANSWERS)})")
    most = max(score for score, _ in scored)
    best, others = [[t for s, t in scored if (s == most) is top] for top in (True, False)]
    if not others or len(best) > 1:
        raise UnusableRow("several answers have the best score" if others else "no answer is better than another")
    return as_pair(number, prompt, best[0], random.Random(f"{seed}/{number}").choice(others), row.get("system"))


def is_row(value: object) -> bool:
    """Whether a value is an object with keys."""
    return isinstance(value, Mapping)


def number_of(value: object) -> float | None:
    """A score, also where it is written as text."""
    try:
        return None if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Labelled:
    """An answer that is known to be good or bad."""

    row: int
    prompt: str | tuple[Message, ...]
    answer: str
    good: bool
    system: object


def labelled(number: int, row: Row, seed: int) -> Labelled:
    """KTO's form: one answer a row (Ethayarajh et al. 2024, arXiv 2402.01306)."""
    if not isinstance(label := row.get("label"), bool):
        raise UnusableRow("label is neither true nor false")
    prompt, answer = (text_or_turns(row.get(column), column) for column in ("prompt", "completion"))
    if not isinstance(answer, str):
        prompt, answer, _ = split_shared_turns(prompt, answer, answer)
    if not is_text(answer) or not answer.strip():
        raise UnusableRow("completion is empty, or no text")
    return Labelled(number, prompt if isinstance(prompt, str) else tuple(prompt), answer, label, row.get("system"))


def by_prompt(answers: Sequence[Labelled], skipped: dict[str, list[int]]) -> list[PreferencePair]:
    """Good and bad answers to the same prompt, in their order, as pairs."""
    groups: dict[Any, tuple[list[Labelled], list[Labelled]]] = defaultdict(lambda: ([], []))
    for of in answers:
        groups[str((of.prompt, of.system))][not of.good].append(of)
    pairs = []
    for good, bad in groups.values():
        for chosen, rejected in zip(good, bad, strict=False):
            prompt = chosen.prompt if isinstance(chosen.prompt, str) else list(chosen.prompt)
            row = min(chosen.row, rejected.row)
            try:
                pairs.append(as_pair(row, prompt, chosen.answer, rejected.answer, chosen.system))
            except UnusableRow as reason:
                skipped.setdefault(str(reason), []).append(row)
        for alone in chain(good[len(bad) :], bad[len(good) :]):
            skipped.setdefault("no other answer to the prompt has the other label", []).append(alone.row)
    return sorted(pairs, key=lambda pair: pair.row)


def is_transcript(row: Row) -> bool:
    """Whether both answers are texts in which speakers are named."""
    return all(isinstance(row.get(side), str) and SPEAKER.search(str(row[side])) for side in ("chosen", "rejected"))


FORMS: Mapping[str, Form] = {
    "hh": Form(("chosen", "rejected"), transcripts, looks=lambda row: not row.get("prompt") and is_transcript(row)),
    "trl": Form(("chosen", "rejected", "prompt"), with_prompt("prompt")),
    "sharegpt": Form(("chosen", "rejected", "conversations"), with_prompt("conversations")),
    "colossalchat": Form(("chosen", "rejected", "context"), with_prompt("context")),
    "trl_implicit": Form(("chosen", "rejected"), parse_implicit),
    "ultrafeedback": Form(("completions", ("prompt", "instruction")), completions, drawn=True),
    "kto": Form(("prompt", "completion", "label"), labelled, joined=by_prompt),
}


def recognised(columns: set[str], first: Row) -> str | None:
    """The name of the form of rows with these columns, of which this is the first; None for none."""
    return next((name for name, form in FORMS.items() if form.has_columns(columns) and form.looks(first)), None)


class NoForm(Exception):
    """Rows in none of the forms, or not in the one that was asked for. columns: those that they have; missing: those
    that were named and are not among them."""

    def __init__(self, columns: set[str], missing: set[str]) -> None:
        lacks = f", and no {', '.join(sorted(missing))}" if missing else ""
        super().__init__(f"columns {', '.join(sorted(columns)) or '(none)'}{lacks}")


def pairs_of(rows: Iterable[Row | Broken], form: str, columns: Mapping[str, str], seed: int) -> tuple[str, Found]:
    """The form of some rows, and what they come to; rows are counted from 0.

    form: a name of FORMS, or AUTO. columns: theirs by ours. Raises NoForm.
    """

    def ours(row: Row) -> Row:
        renamed = {name: row.get(of) for name, of in columns.items()}
        # a system message only where it was asked for: data may have such a column for another purpose
        return {name: of for name, of in row.items() if name != "system"} | renamed

    seen = iter(rows)
    first: list[Row | Broken] = []
    whole: list[Row] = []
    for row in seen:
        first.append(row)
        whole += [] if isinstance(row, Broken) else [row]
        if len(whole) == LOOKED_AT:
            break
    there = {name for row in whole for name, of in ours(row).items() if of is not None}
    name = recognised(there, ours(whole[0])) if form == AUTO and whole else form
    if whole and (name is None or not FORMS[name].has_columns(there)):
        own = {name for row in whole for name, of in row.items() if of is not None}
        raise NoForm(own, set(columns.values()) - own)
    if not whole:
        name = next(iter(FORMS))  # nothing will be read by it
    assert name is not None
    found = Found(iter(()))
    parts = _parts(FORMS[name], chain(first, seen), ours, seed, found)
    joined = FORMS[name].joined
    found.pairs = parts if joined is None else _together(joined, parts, found.skipped)
    return name, found


def _parts(
    form: Form, rows: Iterable[Row | Broken], ours: Callable[[Row], Row], seed: int, found: Found
) -> Iterator[Any]:
    """What each row comes to, where it comes to something; the others are noted in `found`."""
    for number, row in enumerate(rows):
        found.rows = number + 1
        try:
            if isinstance(row, Broken):
                raise Unreadable(row.why)
            yield form.pair(number, ours(row), seed)
        except UnusableRow as reason:
            kept = found.broken if isinstance(reason, Unreadable) else found.skipped
            kept.setdefault(str(reason), []).append(number)


def _together(
    joined: Callable[[Sequence[Any], dict[str, list[int]]], list[PreferencePair]],
    parts: Iterator[Any],
    skipped: dict[str, list[int]],
) -> Iterator[PreferencePair]:
    """Pairs of parts that lie apart: all of them are held at once."""
    yield from joined(list(parts), skipped)
