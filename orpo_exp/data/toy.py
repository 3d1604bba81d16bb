"""Toy tasks made on the spot: endless, no download, learned by a tiny model in half a minute."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from orpo_exp.data.base import DATA, DataConfig, Source, SourceData
from orpo_exp.schema import setting
from orpo_exp.types import PreferencePair

VOWELS, CONSONANTS = "aeiou", "bdfghjklmnprstvwz"
POLITE, PLAIN, RUDE = "may I have the {}, please?", "I will be taking the {} now", "hand over the {}, you fool!"
HELD_OUT_OF_256 = 32  # one prompt in eight

Task = tuple[str, str, str]  # prompt, right answer, near miss


def _letters(rng: random.Random) -> list[str]:
    """A pronounceable word of 3-6 letters: vowels and consonants in turn, no letter twice."""
    length = rng.randint(3, 6)
    odd, even = rng.sample((VOWELS, CONSONANTS), 2)
    letters = [""] * length
    letters[::2] = rng.sample(odd, (length + 1) // 2)
    letters[1::2] = rng.sample(even, length // 2)
    return letters


def _word(rng: random.Random) -> str:
    return "".join(_letters(rng))


def uppercase(rng: random.Random) -> Task:
    """A word in capitals; missed by one letter, changed for another of its class."""
    letters = _letters(rng)
    word, place = "".join(letters), rng.randrange(len(letters))
    alphabet = VOWELS if letters[place] in VOWELS else CONSONANTS
    letters[place] = rng.choice([letter for letter in alphabet if letter not in letters])
    return f"uppercase: {word}\n", word.upper(), "".join(letters).upper()


def reverse(rng: random.Random) -> Task:
    """A word backwards; missed by two letters of one class that have changed places."""
    letters = _letters(rng)
    word, place = "".join(letters), rng.randrange(len(letters) - 2)
    letters[place], letters[place + 2] = letters[place + 2], letters[place]
    return f"reverse: {word}\n", word[::-1], "".join(reversed(letters))


def end_letter(rng: random.Random) -> Task:
    """The first or the last letter of a word; missed by naming the other."""
    word = _word(rng)
    end, right, wrong = rng.choice((("first", word[0], word[-1]), ("last", word[-1], word[0])))
    return f"{end} letter: {word}\n", right, wrong


def repeat(rng: random.Random) -> Task:
    """A word several times; missed by the count, as often too high as too low."""
    word, (right, wrong) = _word(rng), rng.sample((2, 3, 4), 2)
    return f"repeat {right} times: {word}\n", " ".join([word] * right), " ".join([word] * wrong)


def compare(rng: random.Random) -> Task:
    """The bigger or the smaller of two digits; missed by naming the other."""
    right, wrong = rng.sample(range(10), 2)
    first, second = rng.sample((right, wrong), 2)
    return f"{'bigger' if right > wrong else 'smaller'}: {first} {second}\n", str(right), str(wrong)


def ask(rng: random.Random) -> Task:
    """Ask for a thing politely or rudely; missed by the right words in the other tone."""
    word = _word(rng)
    tone, right, wrong = rng.choice((("politely", POLITE, RUDE), ("rudely", RUDE, POLITE)))
    return f"ask {tone}: {word}\n", right.format(word), wrong.format(word)


def order(rng: random.Random) -> Task:
    """Order a thing: polite is better than plain (a quarter of the pairs), plain is better than rude (the rest)."""
    word = _word(rng)
    right, wrong = (POLITE, PLAIN) if rng.random() < 0.25 else (PLAIN, RUDE)
    return f"order: {word}\n", right.format(word), wrong.format(word)


KINDS: tuple[Callable[[random.Random], Task], ...] = (uppercase, reverse, end_letter, repeat, compare, ask)


def is_held_out(prompt: str) -> bool:
    """Whether a prompt is kept from training: decided by its text alone, so that it holds for every seed and process."""
    return hashlib.sha256(prompt.encode()).digest()[0] < HELD_OUT_OF_256


@dataclass(frozen=True)
class _Draw:
    order_share: float

    def __call__(self, rng: random.Random, *, held_out: bool) -> Task:
        while True:
            kind = order if rng.random() < self.order_share else rng.choice(KINDS)
            task = kind(rng)
            if is_held_out(task[0]) == held_out:
                return task


@dataclass(frozen=True)
class _Train:
    draw: _Draw
    seed: int

    def __getitem__(self, position: int, /) -> PreferencePair:
        return PreferencePair(position, *self.draw(random.Random(f"train {self.seed} {position}"), held_out=False))


@DATA.register("toy")
class Toy(Source):
    """x."""

    @dataclass
    class Config(DataConfig):
        """x."""

        max_length: int = setting(128, ge=3)
        min_prompt_length: int = setting(32, ge=1)
        eval_pairs: int = setting(512, ge=1, le=10_000)
        order_share: float = setting(0.0, ge=0, le=1)

    def __init__(self, config: Config) -> None:
        self.config = config

    def load(self, seed: int) -> SourceData:
        """x."""
        draw = _Draw(self.config.order_share)
        rng = random.Random(f"held out {seed}")
        held: dict[str, Task] = {}
        while len(held) < self.config.eval_pairs:
            task = draw(rng, held_out=True)
            held.setdefault(task[0], task)
        pairs = [PreferencePair(row, *task) for row, task in enumerate(held.values())]
        return SourceData(train=_Train(draw, seed), size=None, held_out=pairs)
