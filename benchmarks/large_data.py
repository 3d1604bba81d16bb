"""How long a first and a second start take with many pairs, and how much memory.

    uv run python benchmarks/large_data.py                        # 100,000 pairs, 90 MB: some two minutes on two cores
    uv run python benchmarks/large_data.py --pairs 100000 1000000 # and a million, ten times as large: some ten minutes

Pairs of made-up words are written to disk and trained on for one step through the command line, with a tiny model and
a tokenizer of 8,000 tokens that is trained on the words. Time is that from the command to the first step, memory the
run's peak as Linux counts it (VmHWM), beside that of a run with 200 pairs. Prints a table; exits with 1 where a first
start takes longer than 30 s or a second one longer than 15 s for each 100,000 pairs, or memory is more than 1 GB above
that of 200 pairs, or grows by more than a fifth from the smallest number of pairs to the largest.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS, VOCABULARY, FEW = 15_000, 8_000, 200
FIRST, SECOND, ABOVE, GROWTH = 30.0, 15.0, 1e9, 1.2


def main() -> int:
    """0 where all is within its limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000])
    parser.add_argument("--folder", type=Path, help="where to write all this; by default a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        make_model(folder)
        print("| pairs | MB on disk | first start, s | second start, s | peak memory, GB | above 200 pairs, GB |")
        print("|---|---|---|---|---|---|", flush=True)
        peaks, right = [], True
        for count in [FEW, *sorted(args.pairs)]:
            path = folder / f"{count}.jsonl"
            if not path.exists():
                write_pairs(path, count)
            (first, peak), (second, again) = (start(folder, path, f"{count}-{i}") for i in (1, 2))
            peaks.append(max(peak, again))
            times = max(1.0, count / 100_000)
            right &= first <= FIRST * times and second <= SECOND * times and peaks[-1] - peaks[0] <= ABOVE
            size, above = path.stat().st_size / 1e6, (peaks[-1] - peaks[0]) / 1e9
            print(
                f"| {count:,} | {size:.0f} | {first:.1f} | {second:.1f} | {peaks[-1] / 1e9:.2f} | {above:.2f} |",
                flush=True,
            )
        if len(args.pairs) > 1:
            right &= peaks[-1] <= GROWTH * peaks[1]
            print(f"\nmemory of the most pairs over that of the fewest: {peaks[-1] / peaks[1]:.2f}")
    print("within the limits" if right else "NOT within the limits")
    return 0 if right else 1


def texts(count: int) -> "list[str]":
    """The words of a language of our own: some often, most seldom."""
    rng = random.Random(0)
    letters = "aeiou", "bcdfghklmnprstvw"
    return ["".join(rng.choice(letters[i % 2]) for i in range(rng.randint(2, 9))) for _ in range(count)]


def write_pairs(path: Path, count: int) -> None:
    """Pairs of about 900 bytes."""
    rng, words = random.Random(1), texts(WORDS)
    weights = [1 / (rank + 10) for rank in range(WORDS)]
    drawn = rng.choices(words, weights, k=1_000_000)

    def text(mean: float) -> str:
        length = max(4, min(400, int(rng.lognormvariate(0, 0.7) * mean)))
        begin = rng.randrange(len(drawn) - length)
        return " ".join(drawn[begin : begin + length])

    with path.open("w") as file:
        for _ in range(count):
            file.write(json.dumps({"prompt": text(70), "chosen": text(25), "rejected": text(25)}) + "\n")


def make_model(folder: Path) -> None:
    """A Llama of 64 x 2 with a byte-level tokenizer that knows the words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([" ".join(texts(WORDS))] * 2, vocab_size=VOCABULARY, special_tokens=["<eos>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>")
    tokenizer.save_pretrained(folder / "model")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")


def start(folder: Path, data: Path, name: str) -> tuple[float, int]:
    """Seconds to the first step of a run, and its peak of memory in bytes."""
    run = folder / name
    command = [
        sys.executable, "-m", "orpo_exp", "+experiment=orpo", f"data.path={data}", f"model.path={folder / 'model'}",
        "data.eval_size=64", f"data.cache={folder / 'cache'}", "train.global_batch_size=16", "train.max_steps=1",
        "train.samples=0", "tracker=[]", f"hydra.run.dir={run}",
    ]  # fmt: skip
    metrics, began, reached = run / "metrics.jsonl", time.monotonic(), None
    process = subprocess.Popen(command, cwd=folder, env=os.environ, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if reached is None and metrics.exists() and '"split": "train"' in metrics.read_text():
            reached = time.monotonic() - began
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    peak = json.loads((run / "result.json").read_text())["peak_memory_bytes"]
    return reached or time.monotonic() - began, max(peak) if isinstance(peak, list) else peak


if __name__ == "__main__":
    sys.exit(main())
