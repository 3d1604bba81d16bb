"""Short tasks made on the spot: endless, nothing to download, learned by a tiny model in under a minute.

Each kind draws its right answer and its near miss so that the two could change places: without the prompt nothing tells
which is which. What a model gains above one half it has learned from the prompts. (`order`, a taste, is the exception.)
"""

import hashlib
import random
from dataclasses import dataclass

from typing_extensions import override

from orpo_exp.data.base import DATA, DataConfig, Source, SourceData
from orpo_exp.schema import setting
from orpo_exp.types import PreferencePair

VOWELS, CONSONANTS = "aeiou", "bdfklmnprst"
POLITE, PLAIN, RUDE = "{}, please", "{}, for me", "{}, hurry!"  # of one length, for answers are compared by token means
COUNTS = {"once": 1, "twice": 2, "thrice": 3}
HELD_OUT_SHARE = 1 / 8

Task = tuple[str, str, str]  # prompt, right answer, near miss


def _word(rng: random.Random) -> str:
    """A pronounceable word of 3-5 letters: vowels and consonants in turn, no letter twice."""
    length = rng.randint(3, 5)
    odd, even = rng.sample((VOWELS, CONSONANTS), 2)
    letters = [""] * length
    letters[::2] = rng.sample(odd, (length + 1) // 2)
    letters[1::2] = rng.sample(even, length // 2)
    return "".join(letters)


def upper(rng: random.Random) -> Task:
    """A word in capitals; missed by one letter, changed for another of its class."""
    word = _word(rng)
    old = rng.choice(word)
    new = rng.choice([letter for letter in (VOWELS if old in VOWELS else CONSONANTS) if letter not in word])
    return f"upper: {word}\n", word.upper(), word.replace(old, new).upper()


def reverse(rng: random.Random) -> Task:
    """A word backwards; missed by two letters of one class that have changed places."""
    word = _word(rng)
    place = rng.randrange(len(word) - 2)
    three = word[place : place + 3]
    return f"reverse: {word}\n", word[::-1], word.replace(three, three[::-1])[::-1]


def end(rng: random.Random) -> Task:
    """The first or the last letter of a word; missed by naming the other."""
    word = _word(rng)
    which, right, wrong = rng.choice((("first", word[0], word[-1]), ("last", word[-1], word[0])))
    return f"{which}: {word}\n", right, wrong


def repeat(rng: random.Random) -> Task:
    """A word once, twice or thrice; missed by the count, as often too high as too low."""
    word, (right, wrong) = _word(rng), rng.sample(list(COUNTS), 2)
    return f"{right}: {word}\n", " ".join([word] * COUNTS[right]), " ".join([word] * COUNTS[wrong])


def compare(rng: random.Random) -> Task:
    """The bigger or the smaller of two digits; missed by naming the other."""
    right, wrong = rng.sample(range(10), 2)
    left, other = rng.sample((right, wrong), 2)
    return f"{'bigger' if right > wrong else 'smaller'}: {left} {other}\n", str(right), str(wrong)


def ask(rng: random.Random) -> Task:
    """Ask for a thing politely or rudely; missed by the right word in the other tone."""
    word = _word(rng)
    tone, right, wrong = rng.choice((("polite", POLITE, RUDE), ("rude", RUDE, POLITE)))
    return f"{tone}: {word}\n", right.format(word), wrong.format(word)


def order(rng: random.Random) -> Task:
    """Order a thing: a quarter of the pairs prefer polite over plain, the rest plain over rude.

    Imitation follows the majority and answers plainly; only the preferences say that polite is best of all.
    """
    word = _word(rng)
    right, wrong = (POLITE, PLAIN) if rng.random() < 0.25 else (PLAIN, RUDE)
    return f"order: {word}\n", right.format(word), wrong.format(word)


KINDS = (upper, reverse, end, repeat) * 2 + (compare, ask)  # the two easiest come half as often


def is_held_out(prompt: str) -> bool:
    """Whether a prompt is kept from training: its text alone decides, whatever the seed, process or machine."""
    return hashlib.sha256(prompt.encode()).digest()[0] < 256 * HELD_OUT_SHARE


@dataclass(frozen=True)
class Tasks:
    """Training pairs by position, each a function of seed and position alone: a resumed run and every rank agree."""

    seed: int
    order_share: float

    def __getitem__(self, position: int, /) -> PreferencePair:
        return PreferencePair(position, *self.draw(random.Random(f"{self.seed} train {position}"), held_out=False))

    def held_out(self, count: int) -> list[PreferencePair]:
        """`count` pairs for evaluation, no prompt twice (so there are few of `compare`, which soon runs out)."""
        rng = random.Random(f"{self.seed} held out")
        tasks: dict[str, Task] = {}
        while len(tasks) < count:
            task = self.draw(rng, held_out=True)
            tasks.setdefault(task[0], task)
        return [PreferencePair(row, *task) for row, task in enumerate(tasks.values())]

    def draw(self, rng: random.Random, *, held_out: bool) -> Task:
        """One task from this side of the split."""
        while True:
            kind = order if rng.random() < self.order_share else rng.choice(KINDS)
            task = kind(rng)
            if is_held_out(task[0]) == held_out:
                return task


@DATA.register("toy")
class Toy(Source):
    """Words to capitalise, reverse, repeat or ask for, digits to compare; the wrong answer is a near miss."""

    endless = True

    @dataclass
    class Config(DataConfig):
        """eval_pairs, test_pairs: sizes of the evaluation set and the test set; order_share: how many of all pairs are
        of the kind `order`."""

        max_length: int = setting(128, ge=3)
        min_prompt_length: int = setting(32, ge=1)
        eval_pairs: int = setting(512, ge=1, le=2_000)
        test_pairs: int = setting(0, ge=0, le=2_000, as_before=0)
        order_share: float = setting(0.0, ge=0, le=1)

    config: Config

    @override
    def load(self, seed: int) -> SourceData:
        """The seed decides which tasks come, not which prompts are held out; `split_seed` which of these are tested."""
        c = self.config
        kept_back = Tasks(c.split_by(seed), c.order_share).held_out(c.eval_pairs + c.test_pairs)
        held_out, test = kept_back[: c.eval_pairs], kept_back[c.eval_pairs :]
        return SourceData(train=Tasks(seed, c.order_share), size=None, held_out=held_out, test=test)
