"""Combinations of components that a CPU can run, and a few of them that hold every pair that the checks allow.

A plugin notices of a loss what it asks for, of a schedule what moves the weight: these are what is paired, and every
loss, schedule and reference is in some row. The rows lie in parallel/combinations.csv; where a component has come or
gone, `python tests/combinations.py [SEED]` searches for new ones, for some ten minutes, beginning at those.
"""

import csv
import math
import random
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

from support import order_of

from orpo_exp.composition import compose
from orpo_exp.config import RunConfig, check, typed_part
from orpo_exp.layouts import LAYOUTS
from orpo_exp.losses import LAM_SCHEDULES, LOSSES, Loss
from orpo_exp.models.attention import Attention
from orpo_exp.optimizers import OPTIMIZERS
from orpo_exp.plugins import Precision
from orpo_exp.schema import ConfigError

Row = dict[str, str]  # factor -> the value that it has
Held = frozenset[tuple[tuple[str, str], ...]]  # pairs of factors' values, and single ones that are to be somewhere

CONF, FILE = Path(__file__).parents[1] / "conf", Path(__file__).parent / "parallel" / "combinations.csv"
MOST = 60
BASE = (
    "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=2", "train.global_batch_size=8",
    "train.max_steps=1", "train.samples=0", "scheduler=constant", "optimizer.lr=1e-3", "tracker=[]",
)  # fmt: skip
RANKS = {  # of each way to split a run
    "ddp": 1, "ddp x2": 2, "zero1": 2, "zero2": 2, "zero2_offload": 2, "tp2": 2, "pp2": 2, "tp2 x pp2": 4,
    "dp2 x pp2 zero": 4,
}  # fmt: skip
# what stands for an option where its file alone would not do, and options that have no file
MORE = {
    "plugin": {
        "ddp x2": ["plugin=ddp"],
        "tp2": ["plugin=hybrid", "plugin.tp_size=2"],
        "pp2": ["plugin=hybrid", "plugin.pp_size=2"],
        "tp2 x pp2": ["plugin=hybrid", "plugin.tp_size=2", "plugin.pp_size=2"],
        "dp2 x pp2 zero": ["plugin=hybrid", "plugin.pp_size=2", "plugin.zero_stage=1"],
    },
    "loss": {"dpo wpo": ["loss=dpo", "loss.wpo=true"]},
    "reference": {
        "synced": ["reference=synced", "reference.every=1"],
        "synced by half": ["reference=synced", "reference.every=1", "reference.mix=0.5"],
        "cached": ["reference=cached", "reference.folder=cache"],
    },
    "optimizer": {
        "galore": ["optimizer=galore", "optimizer.rank=16"],  # of matrices that are 64 wide
        # it moves a matrix by this share of its norm: less is lost at first where weights have 16 bits
        "lamb": ["optimizer=lamb", "optimizer.lr=1e-2"],
    },
}
GROUPS = ("plugin", "loss", "reference", "lam_schedule", "optimizer", "layout")
SETTINGS = {
    "plugin.precision": [of.value for of in Precision if of is not Precision.tf32],
    "model.attention": [of.value for of in Attention if of is not Attention.flash_attention_2],
    "model.gradient_checkpointing": ["false", "true"],
    "model.dropout": ["0.0", "0.1"],
    "train.micro_batch_size": ["8", "2"],
}


@cache
def options(group: str) -> dict[str, list[str]]:
    """Every option of a group with its overrides."""
    files = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    return {name: [f"{group}={name}"] for name in files} | MORE.get(group, {})


def command(row: Row) -> list[str]:
    """The overrides of a row."""
    chosen = [override for group in GROUPS for override in options(group)[row[group]]]
    return [*BASE, *chosen, *(f"{key}={row[key]}" for key in SETTINGS)]


@cache
def parts() -> dict[str, dict[str, Any]]:
    """The settings of every option of every group; several groups at once, for composing takes a tenth of a second."""
    found: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for chosen in zip_longest(*(options(group).items() for group in GROUPS)):
        some = {group: option for group, option in zip(GROUPS, chosen, strict=True) if option}
        node = compose([*BASE, *(override for _, overrides in some.values() for override in overrides)], None)
        for group, (name, _) in some.items():
            found[group][name] = typed_part(node[group], group)
    return found


@cache
def factors() -> dict[str, list[str]]:
    """Every factor's values that a CPU can run."""
    groups = {group: list(of) for group, of in parts().items()}
    groups["plugin"] = list(RANKS)
    groups["layout"].remove("auto")  # it comes to one of the others
    groups["reference"] = [name for name in groups["reference"] if name not in ("auto", "base")]  # base: adapters/
    groups["optimizer"] = [name for name, of in parts()["optimizer"].items() if OPTIMIZERS.of(of).lacking() is None]
    return groups | SETTINGS


@cache
def base() -> RunConfig:
    return order_of(*BASE).config


def config_of(row: Row) -> RunConfig:
    """What `order_of(*command(row))` makes, unchecked and at once."""
    chosen = {group: parts()[group][row[group]] for group in GROUPS}
    chosen["plugin"] = replace(chosen["plugin"], precision=Precision(row["plugin.precision"]))
    model = replace(
        base().model,
        attention=Attention(row["model.attention"]),
        gradient_checkpointing=row["model.gradient_checkpointing"] == "true",
        dropout=float(row["model.dropout"]),
    )
    train = replace(base().train, micro_batch_size=int(row["train.micro_batch_size"]))
    choices = {group: options(group)[row[group]][0].partition("=")[2] for group in GROUPS}
    return replace(base(), **chosen, model=model, train=train, choices=base().choices | choices)


@cache
def loss_named(name: str) -> Loss:
    return LOSSES.build(parts()["loss"][name])


def moved_by(schedule: str) -> str:
    """What moves the weight."""
    kind = LAM_SCHEDULES.of(parts()["lam_schedule"][schedule])
    return "metrics" if kind.needs_metrics else "the step" if kind.varies else "nothing"


def texts(layout: str) -> str:
    """What a plugin notices of a layout."""
    return "several texts a row" if LAYOUTS.of(parts()["layout"][layout]).several_texts else "one text a row"


def asked_for(loss: str) -> Row:
    """What a plugin notices of a loss."""
    of = loss_named(loss)
    return {"scope": of.scope.value, "needs": " ".join(sorted(need.name for need in of.needs))}


def held_by(row: Row) -> Held:
    """What a row holds."""
    compares = loss_named(row["loss"]).needs_reference
    reference = row["reference"] if compares else "none"
    noticed = asked_for(row["loss"]) | {
        "lam_schedule": moved_by(row["lam_schedule"]),
        "reference": reference.removesuffix(" by half"),
        "layout": texts(row["layout"]),
    }
    paired = {factor: value for factor, value in (row | noticed).items() if factor != "loss"}
    somewhere = row | {"reference": reference}
    single = [((factor, somewhere[factor]),) for factor in ("loss", "lam_schedule", "reference", "layout")]
    return frozenset([*combinations(paired.items(), 2), *single])


@cache
def allowed(values: tuple[str, ...]) -> Held:
    """What the row with these values holds; nothing where the checks refuse it."""
    row = dict(zip(factors(), values, strict=True))
    try:
        check(config_of(row))
    except ConfigError:
        return frozenset()
    return held_by(row)


@cache
def alike(factor: str) -> list[list[str]]:
    """A factor's values, those together of which a plugin notices the same."""
    told: dict[str, list[str]] = {}
    for value in factors()[factor]:
        if factor == "loss":
            kind = f"{asked_for(value)} {loss_named(value).needs_reference} {bool(loss_named(value).weight_field)}"
        else:
            told_by = {"lam_schedule": moved_by, "layout": texts}
            kind = told_by.get(factor, str)(value)
        told.setdefault(kind, []).append(value)
    return list(told.values())


def drawn(rng: random.Random, factor: str) -> str:
    """Some value of a factor, rare kinds as often as others."""
    return rng.choice(rng.choice(alike(factor)))


def random_rows(rng: random.Random, count: int) -> list[tuple[str, ...]]:
    """Of so many random rows those that the checks allow."""
    rows = [tuple(drawn(rng, factor) for factor in factors()) for _ in range(count)]
    return [row for row in rows if allowed(row)]


def read() -> list[Row]:
    """The rows that are kept."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def search(rows: list[tuple[str, ...]], known: set[Any], rng: random.Random, moves: int) -> set[Any]:
    """Change rows at random until they hold everything, by simulated annealing; what they lack in the end."""
    count = Counter(held for row in rows for held in allowed(row))
    for move in range(moves):
        if move % 100 == 0 and known <= (+count).keys():
            break
        number = rng.randrange(len(rows))
        new = list(rows[number])
        for place in rng.choices(range(len(new)), k=rng.choice((1, 1, 2, 3))):
            new[place] = drawn(rng, list(factors())[place])
        before, after = allowed(rows[number]), allowed(tuple(new))
        known |= after
        lost = sum(count[held] == 1 for held in before - after)
        won = sum(count[held] == 0 for held in after - before)
        warmth = max(0.05, 0.6 * (1 - move / moves))
        if after and rng.random() < math.exp(min(0.0, (won - lost) / warmth)):
            count.subtract(before)
            count.update(after)
            rows[number] = tuple(new)
    return known - (+count).keys()


def main() -> int:
    """Search for rows, beginning at those that are kept and still allowed; write them where they hold everything."""
    rng = random.Random(int(sys.argv[1]) if sys.argv[1:] else 0)
    pool = random_rows(rng, 6000)
    known = set().union(*map(allowed, pool))
    kept = [tuple(row.get(factor, "") for factor in factors()) for row in read()] if FILE.exists() else []
    fits = [all(value in of for value, of in zip(row, factors().values(), strict=True)) for row in kept]
    rows = [row for row, fit in zip(kept, fits, strict=True) if fit and allowed(row)]
    while len(rows) < MOST:
        lacking = known.difference(*map(allowed, rows))
        rows.append(max(pool, key=lambda row: len(allowed(row) & lacking)))
    lacking = search(rows, known, rng, moves=400_000)
    if lacking:
        print(f"{len(lacking)} of {len(known)} are in no row, among them {next(iter(lacking))}; give another seed")
        return 1
    with FILE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([list(factors()), *sorted(rows)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
