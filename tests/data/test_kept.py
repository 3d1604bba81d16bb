"""What is read and tokenized once: kept whole, found again, made anew where anything has changed."""

import json
import random
import threading
import time

import pytest
from data.kinds import KINDS, made

from orpo_exp.data import files, kept, tokens
from orpo_exp.data.base import DataConfig, SourceData
from orpo_exp.data.files import JsonFiles
from orpo_exp.data.kept import Kept
from orpo_exp.data.pair_tokenizer import PairTokenizer
from orpo_exp.data.tokenize import prepare
from orpo_exp.models.tokenizers import bytes_tokenizer
from orpo_exp.schema import ConfigError, Refused

PLACE = "kept"  # in the folder that the test is in


def written(path, count, seed=0, start=0):
    rng = random.Random(seed)

    def text():
        return "".join(rng.choice("abc é日\n") for _ in range(rng.randint(1, 30))) + "x"

    rows = [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(count)]
    for row in rows[::7]:
        row["prompt"] = [{"role": "system", "content": "s"}, {"role": "user", "content": row["prompt"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(path, **settings):
    return JsonFiles(JsonFiles.Config(path=str(path), cache=PLACE, **({"eval_size": 20} | settings)))


def told(pairs):
    return [(p.row, *(ids.tolist() for ids in (p.prompt_ids, p.chosen_ids, p.rejected_ids))) for p in pairs]


def in_memory(data):
    """The same, of which nothing is kept."""
    return SourceData(list(data.train), data.size, list(data.held_out), data.skipped)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_pairs_that_are_not_kept(tmp_path, kind, whole):
    config = {"max_length": 30, "min_prompt_length": 8, "whole_text": whole}
    of = source(written(tmp_path / "rows.jsonl", 1100), **config)  # more than are worked on together
    data = of.load(0)
    tokenizer = made(kind)
    found, plain = (prepare(each, tokenizer, of.config) for each in (data, in_memory(data)))
    assert told(found.train(range(found.size))) == told(plain.train(range(plain.size)))
    assert told(found.held_out) == told(plain.held_out)
    assert list(found.texts) == list(plain.texts)
    assert found.truncated == plain.truncated > 50
    assert found.skipped == plain.skipped
    assert found.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizers_own_call_gives_the_same_tokens(kind):
    tokenizer = made(kind)
    encode = PairTokenizer(tokenizer, 1000, 10)
    texts = ["the answer", " is two ", "é日本🙂\n", "<eos>", ""]
    theirs = tokenizer(texts, add_special_tokens=False).input_ids
    assert [of.ids for of in encode._encodings(texts)] == theirs


def test_the_second_start_reads_no_row_and_tokenizes_no_pair(tmp_path, monkeypatch):
    path = written(tmp_path / "rows.jsonl", 60)
    of = source(path)
    first = prepare(of.load(0), bytes_tokenizer(), of.config)
    expected = told(first.train(range(first.size))), told(first.held_out), first.fingerprint()

    def again(*of, **more):
        raise AssertionError("worked out again")

    monkeypatch.setattr(files, "read", again)
    monkeypatch.setattr(tokens, "write_tokens", again)
    second = prepare(source(path).load(0), bytes_tokenizer(), of.config)
    assert (told(second.train(range(second.size))), told(second.held_out)) == expected[:2]
    monkeypatch.setattr(type(second), "_hash", again)
    assert second.fingerprint() == expected[2]
    other_split = prepare(source(path).load(1), bytes_tokenizer(), of.config)
    assert told(other_split.held_out) != expected[1]


def test_whatever_decides_on_pairs_or_tokens_has_them_made_again(tmp_path):
    path = written(tmp_path / "rows.jsonl", 60)

    def all_of(tokenizer=None, **settings):
        of = source(path, **settings)
        done = prepare(of.load(0), tokenizer or bytes_tokenizer(), of.config)
        return sorted(told([*done.train(range(done.size)), *done.held_out]))

    before = all_of()
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m['content'] }}!{% endfor %}")
    other = bytes_tokenizer()
    other.chat_template = "{% for m in messages %}{{ m['content'] }}?{% endfor %}"
    changed = [
        all_of(max_length=12, min_prompt_length=4),
        all_of(chat_template="mine.jinja"),
        all_of(other),
        all_of(columns=files.Columns(chosen="rejected", rejected="chosen")),
        all_of(longest_prompt=20),
    ]
    assert all(each != before for each in changed)
    assert all_of() == before
    written(path, 60, seed=1)
    assert all_of() != before


def test_which_lengths_are_used(tmp_path):
    lengths = [(1, 3, 5), (9, 3, 3), (3, 1, 8), (4, 4, 4), (6, 6, 7)]  # of bytes, which are the tokens
    rows = [{"prompt": "p" * p, "chosen": "c" * c, "rejected": "r" * r} for p, c, r in lengths]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cut = {"max_length": 6, "min_prompt_length": 3}
    of = source(path, eval_path=str(path), longest=12, longest_prompt=8, shortest_answer=2, **cut)
    done = prepare(of.load(0), bytes_tokenizer(), of.config)
    assert [pair.row for pair in done.train(range(done.size))] == [pair.row for pair in done.held_out] == [0, 3]
    assert {reason: rows for reason, rows in done.skipped.items() if "evaluation" not in reason} == {
        "a prompt longer than data.longest_prompt=8 tokens": [1],
        "an answer shorter than data.shortest_answer=2 tokens": [2],
        "longer than data.longest=12 tokens": [4],
    }
    assert done.truncated == 4


def test_an_answer_that_the_seed_draws_is_drawn_for_each_seed(tmp_path):
    answers = [{"response": f"answer {i}", "overall_score": float(i == 2)} for i in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "completions": answers}) + "\n" for i in range(40)))

    def rejected(seed):
        data = source(path).load(seed)
        return {pair.row: pair.rejected for pair in [*data.train, *data.held_out]}

    first, other = rejected(0), rejected(1)
    assert first != other
    assert (rejected(0), rejected(1)) == (first, other)


def test_of_several_that_ask_at_once_one_makes_it():
    place, made_by, got = Kept(PLACE), [], []

    def fill(folder):
        made_by.append(threading.get_ident())
        time.sleep(0.2)
        (folder / "it").write_text("done")

    def ask():
        got.append((place.make("thing", ["facts"], fill) / "it").read_text())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (got, len(made_by)) == (["done"] * 4, 1)


def test_what_was_left_half_done_is_removed_and_made_anew():
    place = Kept(PLACE)

    def breaks(folder):
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.make("thing", [], breaks)
    folder = place.root / f"thing-{kept.key_of([])}"
    assert not [path for path in place.root.iterdir() if path.is_dir()]
    left = place.root / f".{folder.name}.{kept.socket.gethostname()}.{2**22 + 1}"  # no process has such a number
    left.mkdir()
    assert place.make("thing", [], lambda of: (of / "it").write_text("")) == folder
    assert [path.name for path in folder.iterdir()] == ["it"]
    assert not left.exists()


def test_where_nothing_can_be_written_the_setting_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = written(tmp_path / "rows.jsonl", 60)
    with pytest.raises(ConfigError, match=r"data\.cache.*a folder that can be written"):
        JsonFiles(JsonFiles.Config(path=str(path), cache=str(tmp_path / "file" / "in"))).load(0)


def test_a_file_that_is_not_what_was_written_is_told(tmp_path):
    path = written(tmp_path / "rows.jsonl", 60)
    source(path).load(0)
    (pairs,) = (tmp_path / PLACE).glob("texts-*/pairs.arrow")
    pairs.write_bytes(pairs.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"data\.cache.*Delete it"):
        source(path).load(0)


def test_what_is_let_go_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "READS", 3)
    data = source(written(tmp_path / "rows.jsonl", 60)).load(0)
    assert [data.train[i] for i in range(data.size)] == list(data.train)
    done = prepare(data, bytes_tokenizer(), DataConfig())
    assert told(done.train(range(done.size))) == told(done.train(range(done.size)))


def test_where_no_pair_is_usable_that_is_said(tmp_path):
    of = source(written(tmp_path / "rows.jsonl", 60), longest_prompt=1)
    with pytest.raises(Refused, match="no held-out pair is usable as tokens"):
        prepare(of.load(0), bytes_tokenizer(), of.config)
