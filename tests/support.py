"""What several tests share."""

import random
from collections.abc import Sequence

import torch

from orpo_exp.types import Counts, PairLogps, TokenizedPair, TokenLogps

WORDS = ("red", "blue", "green", "tiny", "house", "walks", "sings", "over", "the")


def uneven_rows(count: int) -> list[dict[str, str]]:
    """Preference rows whose prompts and answers are between one and some twenty words long."""
    rng = random.Random(1)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))

    return [
        {"prompt": f"{i} {words(12)}\n", "chosen": f"{words(9)} {i}", "rejected": f"{words(15)} no {i}"}
        for i in range(count)
    ]


def span(*pairs: Sequence[float]) -> TokenLogps:
    """TokenLogps of hand-written log-probabilities, one sequence per pair, in float64 so that nothing is rounded."""
    values = torch.tensor([value for pair in pairs for value in pair], dtype=torch.float64, requires_grad=True)
    return TokenLogps(values, torch.tensor([len(pair) for pair in pairs], dtype=torch.int64))


def counts_of(logps: PairLogps) -> Counts:
    """The counts of a batch that these log-probabilities are the whole of."""
    return Counts(
        pairs=len(logps.chosen.lengths),
        chosen_tokens=int(logps.chosen.lengths.sum()),
        rejected_tokens=int(logps.rejected.lengths.sum()),
        prompt_tokens=int(logps.prompt.lengths.sum()) if logps.prompt else 0,
    )


def pair(row: int, prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> TokenizedPair:
    """A tokenized pair from lists of ids."""
    return TokenizedPair(row, *(torch.tensor(ids, dtype=torch.int32) for ids in (prompt, chosen, rejected)))


def random_pairs(count: int, vocabulary: int, seed: int = 0) -> list[TokenizedPair]:
    """Tokenized pairs of uneven lengths, answers from one token on."""
    rng = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(rng.randint(least, most))]

    return [pair(row, ids(1, 12), ids(1, 9), ids(1, 20)) for row in range(count)]
