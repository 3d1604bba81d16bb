"""The page that shows data before training."""

import json

from rich.console import Console
from support import pair

from orpo_exp.data.inspect import histogram, inspected, main
from orpo_exp.data.tokenize import TokenizedData
from orpo_exp.models.tokenizers import bytes_tokenizer
from orpo_exp.types import PreferencePair

OVERRIDES = ["+experiment=orpo", "model=tiny", "data.eval_size=2"]


def shown(page) -> str:
    console = Console(width=120, highlight=False)
    with console.capture() as captured:
        console.print(page)
    return captured.get()


def test_the_command_prints_what_is_read_scored_and_lost(tmp_path, capsys):
    rows = [{"prompt": f"{i} ?", "chosen": "yes, it is", "rejected": "no"} for i in range(8)]
    rows += [rows[3], {"prompt": "x", "chosen": "", "rejected": "no"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*OVERRIDES, f"data.path={tmp_path / 'pairs.jsonl'}"]) == 0
    page = capsys.readouterr().out
    for said in (
        "rows as trl",
        "skipped 1: empty chosen: rows 9",
        "chosen    y│e│s│,│ │i│t│ │i│s│<eos>",
        "the longer one in 100%, by +8.0 tokens",
    ):
        assert said in page, said


def test_figures_are_those_counted_by_hand():
    train = [pair(0, [1, 2], [3, 4], [5]), pair(1, [1, 2], [3], [5, 6]), pair(2, [7], [8], [9]), pair(3, [7], [8], [9])]
    texts = [PreferencePair(9, "p", "a", "b")]
    data = TokenizedData(lambda places: [train[p] for p in places], 4, [train[0]], texts, {}, truncated=3, max_length=9)
    page = shown(inspected(data, bytes_tokenizer(), batch=2))
    assert "16, 4 a pair with its prompt once; 3 pairs cut" in page
    # rows of 4 and 3, 3 and 4 padded to 4; of 2 and 2 twice: 2 of 24 are padding
    assert "8% of all" in page
    # 22 tokens in rows, 6 of them prompts again
    assert "27% of the rest" in page
    assert "2 of 2 prompts have several pairs" in page
    assert "1 pairs are there more than once; 1 are held out as well" in page
    assert "the longer one in 25%, by +0.0 tokens" in page


def test_a_histogram_counts_everything_once():
    lines = shown(histogram([1] * 8 + [2, 30, 55], "red")).splitlines()
    assert sum(int(line.split()[-1]) for line in lines) == 11
    assert lines[0].split()[0] == "1-6"
    assert lines[0].count("█") == 40


def test_what_the_command_line_refuses_is_refused_in_the_same_words(capsys):
    assert main([*OVERRIDES, "data.path=nowhere.jsonl"]) == 2
    assert "data.path" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert main([]) == 2
