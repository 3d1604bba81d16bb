"""A few held-out prompts answered before and after training, as a page to read."""

from collections.abc import Sequence
from pathlib import Path

from orpo_exp.types import PreferencePair


def write_samples(path: Path, pairs: Sequence[PreferencePair], answers: dict[str, list[str]]) -> None:
    """Write samples.md. answers: when ("before training", ...) -> one answer per pair."""
    lines = ["# Held-out prompts, answered greedily", ""]
    for number, pair in enumerate(pairs):
        turns = pair.prompt
        prompt = turns if isinstance(turns, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
        lines += [f"## {number + 1}", "", "prompt", *_fenced(prompt)]
        for when, texts in answers.items():
            lines += [when, *_fenced(texts[number])]
        lines += ["chosen in the data", *_fenced(pair.chosen), "rejected in the data", *_fenced(pair.rejected)]
    path.write_text("\n".join(lines), encoding="utf-8")


def _fenced(text: str) -> list[str]:
    fence = "```"
    while fence in text:  # a text may hold a fence itself
        fence += "`"
    return ["", fence + "text", text.rstrip("\n"), fence, ""]
