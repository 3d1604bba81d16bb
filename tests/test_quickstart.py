"""What the README promises of the quickstart; it trains for a minute or two: `uv run pytest -m slow`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orpo_exp.data.base import SourceData
from orpo_exp.data.toy import Toy
from orpo_exp.tracking.jsonl import read_metrics
from orpo_exp.types import PreferencePair

pytestmark = pytest.mark.slow


def accuracies(folder: Path) -> list[float]:
    return [row["rewards/accuracy"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "eval"]


def test_the_quickstart_learns(run: Callable[..., Path]):
    folder = run("+experiment=quickstart")
    before, *_, after = accuracies(folder)
    assert 0.4 <= before <= 0.6
    assert after >= 0.9
    assert json.loads((folder / "result.json").read_text())["eval"]["rewards/accuracy"] == after
    samples = (folder / "samples.md").read_text()
    assert samples.count("after training") == 4


class Blanked:
    """Training pairs whose prompts say nothing."""

    def __init__(self, data: SourceData) -> None:
        self.train = data.train

    def __getitem__(self, position: int, /) -> PreferencePair:
        return replace(self.train[position], prompt="?\n")


def test_without_prompts_there_is_little_to_learn(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    """The right answers do not give themselves away by length or style."""
    load = Toy.load

    def blanked(self: Toy, seed: int) -> SourceData:
        data = load(self, seed)
        held_out = [replace(pair, prompt="?\n") for pair in data.held_out]
        return replace(data, train=Blanked(data), held_out=held_out)

    monkeypatch.setattr(Toy, "load", blanked)
    assert max(accuracies(run("+experiment=quickstart"))) < 0.65
