"""Rows of preference data, some of them damaged, as lines."""

import json
import random
from collections.abc import Callable

Row = dict[str, str]


def _cut(row: Row, rng: random.Random) -> bytes:
    line = json.dumps(row).encode()
    return line[: rng.randrange(1, len(line))]


def _without(row: Row, rng: random.Random) -> bytes:
    gone = rng.choice(list(row))
    return json.dumps({name: of for name, of in row.items() if name != gone}).encode()


def _other_type(row: Row, rng: random.Random) -> bytes:
    return json.dumps(row | {rng.choice(list(row)): rng.choice([None, 7, True, {}, [], [[]], ["a"]])}).encode()


def _flipped(row: Row, rng: random.Random) -> bytes:
    line = bytearray(json.dumps(row).encode())
    line[rng.randrange(2)] = 0xFF  # no UTF-8 anywhere
    return bytes(line)


WAYS: tuple[Callable[[Row, random.Random], bytes], ...] = (
    _cut,
    _without,
    _other_type,
    _flipped,
    lambda row, rng: json.dumps(row | {"rejected": row["chosen"]}).encode(),
    lambda row, rng: json.dumps(row | {"chosen": "  "}).encode(),
    lambda row, rng: json.dumps(row | {"prompt": "\ud800"}).encode(),
    lambda row, rng: rng.randbytes(20).replace(b"\n", b"") + b"\xff",
    lambda row, rng: json.dumps(list(row.values())).encode(),
    lambda row, rng: json.dumps(row | {"prompt": [{"role": "tool", "content": "x"}]}).encode(),
)


def damaged(count: int, rng: random.Random) -> tuple[list[int], list[bytes]]:
    """So many lines, a third of them damaged, and the places of the whole ones."""
    whole, lines = [], []
    for place in range(count):
        row = {"prompt": f"{place} ?", "chosen": f"yes {rng.random()}", "rejected": f"no {rng.random()}"}
        if place > 0 and rng.random() < 1 / 3:
            lines.append(rng.choice(WAYS)(row, rng))
        else:
            lines.append(json.dumps(row).encode())
            whole.append(place)
    return whole, lines
