"""Read a million rows of which a third are damaged: every whole one is kept, every other one counted.

uv run python benchmarks/broken_rows.py [--rows 1000000]
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from data.damage import damaged

from orpo_exp.data.files import JsonFiles


def main() -> int:
    """0 where it is so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    count = parser.parse_args().rows
    whole, lines = damaged(count, random.Random(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(b"\n".join(lines) + b"\n")
        del lines
        began = time.perf_counter()
        data = JsonFiles(JsonFiles.Config(path=str(path), max_skipped=1, eval_size=64)).load(seed=0)
        took = time.perf_counter() - began
    assert data.size is not None
    kept = sorted(pair.row for pair in [*(data.train[place] for place in range(data.size)), *data.held_out])
    skipped = sum(map(len, data.skipped.values()))
    for reason, numbers in sorted(data.skipped.items(), key=lambda item: -len(item[1])):
        print(f"{len(numbers):9,}  {reason}")
    print(f"{count:,} rows: {len(kept):,} kept, {skipped:,} skipped, in {took:.1f} s")
    right = kept == whole and skipped == count - len(whole)
    print("as it should be" if right else "NOT as it should be")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
