from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from orpo_exp.data.toy import Toy, is_held_out
from orpo_exp.schema import ConfigError
from orpo_exp.types import PreferencePair

SOLUTIONS: dict[str, Callable[[str], str]] = {
    "upper": lambda word: word.upper(),
    "reverse": lambda word: "".join(reversed(word)),
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
    "once": lambda word: word,
    "twice": lambda word: f"{word} {word}",
    "thrice": lambda word: f"{word} {word} {word}",
    "bigger": lambda digits: max(digits.split()),
    "smaller": lambda digits: min(digits.split()),
    "polite": lambda word: f"{word}, please",
    "rude": lambda word: f"{word}, hurry!",
}

FIRST_OF_SEED_3 = [
    ("polite: utabe\n", "utabe, please", "utabe, hurry!"),
    ("reverse: dol\n", "lod", "dol"),
    ("reverse: etom\n", "mote", "meto"),
    ("upper: lom\n", "LOM", "LEM"),
    ("once: beru\n", "beru", "beru beru beru"),
    ("last: olar\n", "r", "o"),
]


def load(seed: int = 0, **settings: float):
    return Toy(Toy.Config(**settings)).load(seed)


def take(train, count: int) -> list[PreferencePair]:
    return [train[position] for position in range(count)]


@pytest.fixture(scope="module")
def data():
    return load()


@pytest.fixture(scope="module")
def train(data) -> list[PreferencePair]:
    return take(data.train, 12_000)


def ask(pair: PreferencePair) -> tuple[str, str]:
    kind, subject = pair.prompt.rstrip("\n").split(": ")
    return kind, subject


def distance(left: Iterable, right: Iterable) -> float:
    """Total variation between two samples: 0 for equal histograms, 1 for disjoint ones."""
    a, b = Counter(left), Counter(right)
    return sum(abs(a[key] / a.total() - b[key] / b.total()) for key in a | b) / 2


def bigrams(text: str) -> list[str]:
    return [text[i : i + 2] for i in range(-1, len(text))]


def test_a_pair_depends_on_seed_and_position_alone(data, train):
    again = load()
    assert [again.train[position] for position in (700, 3, 0)] == [train[700], train[3], train[0]]
    assert again.held_out == data.held_out


def test_a_pair_is_the_same_in_every_process_and_python():
    pairs = take(load(seed=3).train, len(FIRST_OF_SEED_3))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == FIRST_OF_SEED_3


def test_another_seed_makes_other_pairs(data, train):
    other = load(seed=1)
    assert {p.prompt for p in other.held_out} != {p.prompt for p in data.held_out}
    assert sum(a.prompt == b.prompt for a, b in zip(take(other.train, 1000), train, strict=False)) < 50


def test_training_is_endless_and_rows_are_positions(data):
    assert data.size is None
    assert data.train[10**12].row == 10**12
    assert [pair.row for pair in data.held_out] == list(range(512))


def test_held_out_prompts_are_never_trained_on_whatever_the_seed(data, train):
    held_out = {pair.prompt for pair in data.held_out}
    assert len(held_out) == 512
    for other in (train, take(load(seed=1).train, 3000), take(load(seed=2, order_share=0.5).train, 3000)):
        assert held_out.isdisjoint(pair.prompt for pair in other)
    assert all(map(is_held_out, held_out))


def test_the_held_out_set_has_the_size_asked_for():
    assert len(load(eval_pairs=7).held_out) == 7
    assert len({pair.prompt for pair in load(eval_pairs=2000, order_share=1).held_out}) == 2000


def test_chosen_is_right_and_rejected_is_wrong(data, train):
    for pair in [*train, *data.held_out]:
        kind, subject = ask(pair)
        assert pair.chosen == SOLUTIONS[kind](subject)
        assert pair.rejected != pair.chosen


def test_every_kind_comes_up_in_both_sets(data, train):
    assert {ask(pair)[0] for pair in train} == {ask(pair)[0] for pair in data.held_out} == set(SOLUTIONS)


def test_rejected_is_a_near_miss(train):
    for pair in train:
        kind, subject = ask(pair)
        differing = sum(a != b for a, b in zip(pair.chosen, pair.rejected, strict=False))
        if kind == "upper":
            assert (len(pair.rejected), differing) == (len(subject), 1)
        elif kind == "reverse":
            assert (sorted(pair.rejected), differing) == (sorted(subject), 2)
        elif kind in ("first", "last", "bigger", "smaller"):
            assert pair.rejected in (subject[0], subject[-1])
        elif kind in ("once", "twice", "thrice"):
            assert pair.rejected in (subject, f"{subject} {subject}", f"{subject} {subject} {subject}")
        else:
            assert pair.rejected == SOLUTIONS["rude" if kind == "polite" else "polite"](subject)


def test_texts_read_well(train):
    for pair in train[:2000]:
        assert pair.prompt.endswith("\n")
        for answer in (pair.chosen, pair.rejected):
            assert answer == answer.strip() != ""
            assert len(pair.prompt + answer) < 40


def test_chosen_and_rejected_have_the_same_lengths_and_letters(train):
    """Tolerances: a little above the sampling noise of 12,000 pairs."""
    chosen, rejected = [pair.chosen for pair in train], [pair.rejected for pair in train]
    assert distance(map(len, chosen), map(len, rejected)) < 0.015
    assert distance("".join(chosen), "".join(rejected)) < 0.02
    assert distance((answer[0] for answer in chosen), (answer[0] for answer in rejected)) < 0.04
    assert distance((b for a in chosen for b in bigrams(a)), (b for a in rejected for b in bigrams(a))) < 0.04


def test_answers_alone_do_not_tell_which_is_right(train):
    """The likeliest answer under bigram counts of one half of the pairs is right in half of the other half."""
    seen, unseen = train[:8000], train[8000:]
    right = Counter(b for pair in seen for b in [len(pair.chosen), *bigrams(pair.chosen)])
    wrong = Counter(b for pair in seen for b in [len(pair.rejected), *bigrams(pair.rejected)])

    def score(answer: str) -> float:
        return sum((right[b] - wrong[b]) / (right[b] + wrong[b] + 10) for b in [len(answer), *bigrams(answer)])

    accuracy = sum(score(pair.chosen) > score(pair.rejected) for pair in unseen) / len(unseen)
    assert 0.45 < accuracy < 0.55


def test_order_prefers_polite_to_plain_in_a_quarter_of_its_pairs():
    pairs = take(load(order_share=0.4).train, 5000)
    orders = [pair for pair in pairs if ask(pair)[0] == "order"]
    assert len(orders) / len(pairs) == pytest.approx(0.4, abs=0.02)
    polite = 0
    for pair in orders:
        thing = ask(pair)[1]
        tones = (f"{thing}, please", f"{thing}, for me", f"{thing}, hurry!")
        assert (pair.chosen, pair.rejected) in (tones[:2], tones[1:])
        assert len(pair.chosen) == len(pair.rejected)
        polite += pair.chosen == tones[0]
    assert polite / len(orders) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("share", [0, 1])
def test_order_share_may_be_none_or_all(share):
    assert {ask(pair)[0] == "order" for pair in take(load(order_share=share).train, 500)} == {bool(share)}


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_pairs": 0},
        {"eval_pairs": 2001},
        {"order_share": -0.1},
        {"order_share": 1.1},
        {"order_share": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    (key,) = settings
    with pytest.raises(ConfigError, match=key):
        Toy.Config(**settings)
