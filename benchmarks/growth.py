# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["transformers==5.23.0", "torch==2.13.0"]
# ///
"""How the time of a step and the peak of memory grow with the length of pairs and with the vocabulary, on a CPU.

    uv run benchmarks/growth.py
    uv run benchmarks/growth.py --lengths 512 1024 --vocabularies 32000 64000

A Llama with 4 layers of 256 trains in float32 by the command line, each run in a process of its own; half of a pair's
tokens are its prompt. Memory is the growth of the peak over that of the same program training a tiny model, and, beyond
what must be there (weights, their gradients, Adam's moments, the head's gradient of one micro-batch), what the work
itself takes.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from throughput import FULL, TINY, WARM_UP, Pairs, head_of, row_of, run_ours, write_model

# pairs of a step; words that occur; of pairs with several vocabularies, long enough for more than a chunk of logits
PAIRS, WORDS, LENGTH = 2, 1000, 2048


def pairs_of(length: int) -> Pairs:
    """Pairs of random words, all of one length: a half for the prompt, a quarter for each answer."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(words))

    sizes = {"prompt": length // 2, "chosen": length // 4 - 1, "rejected": length // 4 - 1}  # and the end of each
    return [{name: text(size) for name, size in sizes.items()} for _ in range(4 * PAIRS)]


def measured(length: int, vocabulary: int, steps: int) -> dict[str, float]:
    """One run's row of the table."""
    pairs = pairs_of(length)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        (folder / "held_out.jsonl").write_text(json.dumps(pairs[0]) + "\n")
        found, parameters = {}, {}
        for name, sizes in {"full": FULL | {"vocab_size": vocabulary}, "tiny": TINY}.items():
            parameters[name] = write_model(folder / name, sizes, pairs, length)
            run = folder / f"run-{name}"
            found[name] = run_ours("orpo", folder / name, folder / "pairs.jsonl", run, steps, PAIRS, length)
    needed = 4 * (4 * parameters["full"] + vocabulary * FULL["hidden_size"])
    growth = found["full"]["peak"] - found["tiny"]["peak"]
    return {
        "length": length, "vocabulary": vocabulary, "seconds a step": PAIRS / found["full"]["pairs_per_second"],
        "growth MB": growth / 1e6, "beyond MB": (growth - needed) / 1e6,
    }  # fmt: skip


def main() -> None:
    """Run what was asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 64_000, 128_000, 256_000])
    parser.add_argument("--steps", type=int, default=WARM_UP + 3)
    args = parser.parse_args()
    rows = [(length, args.vocabularies[0]) for length in args.lengths] + [(LENGTH, of) for of in args.vocabularies]
    for number, (length, vocabulary) in enumerate(rows):
        found = measured(length, vocabulary, args.steps)
        if not number:
            print(head_of(found))
        print(row_of(found.values()))


if __name__ == "__main__":
    main()
