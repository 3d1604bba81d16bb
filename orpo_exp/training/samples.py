"""A few held-out prompts answered before and after training, as a page to read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orpo_exp.data.tokenize import TokenizedData
from orpo_exp.pair_tables import SAMPLES
from orpo_exp.plugins import Plugin, Which
from orpo_exp.training.settings import TrainConfig
from orpo_exp.types import PreferencePair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answers(
    plugin: Plugin, tokenizer: "PreTrainedTokenizerBase", pairs: TokenizedData, train: TrainConfig
) -> list[str]:
    """Greedy answers to the first held-out prompts, as text."""
    prompts = [pair.prompt_ids for pair in pairs.held_out[: train.samples]]
    generated = plugin.models[Which.policy].generate(prompts, train.sample_tokens, tokenizer.eos_token_id)
    return [tokenizer.decode(ids) for ids in generated]


def write_samples(
    path: Path,
    pairs: Sequence[PreferencePair],
    answers: dict[str, list[str]],
    most_wrong: Sequence[tuple[PreferencePair, float]],
) -> None:
    """Write samples.md, and of the prompts samples.json. answers: when ("before training", ...) -> one answer per pair.
    most_wrong: held-out pairs whose rejected answer has the higher reward, with the margin."""
    lines = ["# Held-out prompts, answered greedily", ""]
    for number, pair in enumerate(pairs):
        lines += [f"## {number + 1}", "", "prompt", *_fenced(prompt_text(pair))]
        for when, texts in answers.items():
            lines += [when, *_fenced(texts[number])]
        lines += ["chosen in the data", *_fenced(pair.chosen), "rejected in the data", *_fenced(pair.rejected)]
    if most_wrong:
        lines += ["# Held-out pairs that it gets most wrong", ""]
    for pair, margin in most_wrong:
        lines += [f"## Row {pair.row}, margin {margin:.4g}", "", "prompt", *_fenced(prompt_text(pair))]
        lines += ["chosen in the data", *_fenced(pair.chosen), "rejected in the data", *_fenced(pair.rejected)]
    path.write_text("\n".join(lines), encoding="utf-8")
    content = [
        {
            "prompt": prompt_text(pair),
            "answers": {when: texts[number] for when, texts in answers.items()},
            "chosen": pair.chosen,
            "rejected": pair.rejected,
        }
        for number, pair in enumerate(pairs)
    ]
    path.with_name(SAMPLES).write_text(json.dumps(content, indent=1), encoding="utf-8")


def prompt_text(pair: PreferencePair) -> str:
    """A prompt to be read by people: of a conversation a line for each turn."""
    turns = pair.prompt
    return turns if isinstance(turns, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _fenced(text: str) -> list[str]:
    fence = "```"
    while fence in text:  # a text may hold a fence itself
        fence += "`"
    return ["", fence + "text", text.rstrip("\n"), fence, ""]
