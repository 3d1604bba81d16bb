"""A row of a data set that has both answers in it -> PreferencePair.

    {"prompt": ..., "chosen": ..., "rejected": ...}          TRL's form
    {"conversations": [...], "chosen": ..., "rejected": ...} ShareGPT's form
    {"context": [...], "chosen": [...], "rejected": [...]}   ColossalChat's form

The first is a string or a list of turns, the answers a string, one turn or a list of turns. A turn is
{"role" or "from": who, "content" or "value": text}. Answers given as whole conversations share their first turns, which
are the prompt then; the prompt may be missing in that case.
"""

from collections.abc import Mapping
from typing import Any

from orpo_exp.types import Message, PreferencePair

PROMPT_COLUMNS = ("prompt", "conversations", "context")
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


class UnusableRow(Exception):
    """A row that is skipped; the message is the reason under which it is counted, so no long text of its own."""


class Unreadable(UnusableRow):
    """A row that did not come as it was written."""


def parse_row(number: int, row: Mapping[str, Any]) -> PreferencePair:
    """The pair in a row; UnusableRow where there is none. `number` is the row's place in its file, from 0."""
    column = next((c for c in PROMPT_COLUMNS if row.get(c) is not None), None)
    prompt = text_or_turns(row[column], column) if column else []
    chosen, rejected = (text_or_turns(row.get(side), side) for side in ("chosen", "rejected"))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        prompt, chosen, rejected = split_shared_turns(prompt, chosen, rejected)
    return as_pair(number, prompt, chosen, rejected, row.get("system"))


def as_pair(
    number: int, prompt: str | list[Message], chosen: str, rejected: str, system: object = None
) -> PreferencePair:
    """The pair of a prompt and its answers; UnusableRow where it is none. system: a system message's text before it."""
    if isinstance(system, str) and system:
        turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        prompt = [Message(role="system", content=system), *turns]
    if not prompt:
        raise UnusableRow("no prompt")
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.strip():
            raise UnusableRow(f"empty {side}")
    if chosen == rejected:
        raise UnusableRow("chosen and rejected are the same")
    texts = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    for text in (*texts, chosen, rejected):
        if not is_text(text):
            raise Unreadable("characters that are no text: lone surrogates, or bytes of another data.encoding")
    return PreferencePair(number, prompt if isinstance(prompt, str) else tuple(prompt), chosen, rejected)


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8, and so be tokenized."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_or_turns(value: Any, column: str) -> str | list[Message]:
    """A text as it is, turns as messages; UnusableRow for anything else. column: where the value is from."""
    if value is None:
        raise UnusableRow(f"no {column}")
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise UnusableRow(f"{column} is neither text nor a list of turns")
    return [_turn(turn, column) for turn in value]


def _turn(turn: Any, column: str) -> Message:
    if not isinstance(turn, Mapping):
        raise UnusableRow(f"a turn in {column} is not an object with role and content")
    role, content = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value") or ""
    if not isinstance(role, str):
        raise UnusableRow(f"a turn in {column} has no role, or one that is not text")
    if role not in ROLES:
        raise UnusableRow(f"unknown role {role[:20]!r} in {column}")
    if not isinstance(content, str):
        raise UnusableRow(f"a turn in {column} has content that is not text")
    return Message(role=ROLES[role], content=content)


def split_shared_turns(
    prompt: str | list[Message], chosen: str | list[Message], rejected: str | list[Message]
) -> tuple[list[Message], str, str]:
    """Move the turns that both answers begin with to the prompt; what remains of each must be one assistant turn."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise UnusableRow("one answer is text, the other a list of turns")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    turns = chosen[:shared]
    given = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    if turns[: len(given)] != given:
        turns = given + turns
    if not all(len(rest) == 1 and rest[0]["role"] == "assistant" for rest in (chosen[shared:], rejected[shared:])):
        raise UnusableRow("an answer is not one assistant turn")
    return turns, chosen[shared]["content"], rejected[shared]["content"]


def split_shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """What two texts begin with, and what remains of each. A space before the parting goes with the answers."""
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
    shared -= chosen[shared - 1 : shared] == " "
    return chosen[:shared], chosen[shared:], rejected[shared:]
