"""Look at the data before training: what is read, what is scored, how long it is, what is lost.

python -m orpo_exp.data.inspect +experiment=orpo data.path=pairs.jsonl model.path=./my-model
"""

import hashlib
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from orpo_exp.data.tokenize import TokenizedData, prepare, training_texts
from orpo_exp.types import TokenizedPair

if TYPE_CHECKING:
    from orpo_exp.runs.order import RunOrder

ENDLESS = 1000  # pairs that are looked at of a source without an end
SHOWN = 3
BAR, BINS, WIDE = 40, 10, 120
PROMPT, CHOSEN, REJECTED = "dim", "green", "red"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page; 0, or 2 where the command is refused."""
    from orpo_exp.cli import preflight
    from orpo_exp.composition import check, compose
    from orpo_exp.models import MODELS
    from orpo_exp.registry import import_outside
    from orpo_exp.schema import ConfigError, Refused
    from orpo_exp.user_errors import ComposeError, error_page, explain

    overrides = list(sys.argv[1:] if arguments is None else arguments)
    if not overrides or {"-h", "--help"} & set(overrides):
        print(__doc__)
        return 0 if overrides else 2
    try:
        import_outside()
        order: RunOrder = check(compose(overrides, None), overrides)
        config = order.config
        data = preflight(order)
        source = MODELS.build(config.model)
        tokenizer = source.prepare(training_texts(data), config.seed).tokenizer
        pairs = prepare(data, tokenizer, config.data).within(source.positions())
        page = inspected(pairs, tokenizer, config.train.global_batch_size)
    except (ConfigError, *ComposeError) as error:
        print(error_page(explain(error, overrides)), file=sys.stderr)
        return 2
    except Refused as error:
        print(f"orpo_exp.data.inspect: {error}", file=sys.stderr)
        return 2
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(page)
    return 0


def inspected(pairs: TokenizedData, tokenizer: Any, batch: int) -> RenderableType:
    """The page. batch: pairs of an optimizer step."""
    count = ENDLESS if pairs.size is None else pairs.size
    seen = Seen.of(pairs, count)
    size = f"{count:,} of an endless source" if pairs.size is None else f"{count:,}"
    form = f", rows as {pairs.form}" if pairs.form else ""
    parts: list[RenderableType] = [
        Text(f"{size} training pairs, {len(pairs.held_out):,} held out{form}", style="bold"),
        *(Text(f"skipped {len(rows):,}: {why}: {_few(rows)}", "yellow") for why, rows in pairs.skipped.items()),
        "",
        Text.assemble(
            "Scored as ", ("chosen", CHOSEN), ", as ", ("rejected", REJECTED), ", read as ", ("prompt", PROMPT)
        ),
    ]
    parts += [coloured(pair, tokenizer) for pair in pairs.train(range(min(SHOWN, count)))]
    parts += ["", figures(pairs, seen, batch), ""]
    for name, style in (("prompt", PROMPT), ("chosen", CHOSEN), ("rejected", REJECTED)):
        parts += [Text(f"tokens of {name}", "bold"), histogram(seen.lengths[name], style)]
    return Group(*parts)


def coloured(pair: TokenizedPair, tokenizer: Any) -> Text:
    """A pair as text, its tokens parted by thin lines."""

    def spelled(ids: Any) -> str:
        return "│".join(tokenizer.decode([token]) for token in ids.tolist()).replace("\n", "⏎")

    parts = {
        "prompt": (pair.prompt_ids, PROMPT),
        "chosen": (pair.chosen_ids, CHOSEN),
        "rejected": (pair.rejected_ids, REJECTED),
    }
    lines = [(f"\n  {name:<9} {spelled(ids)}", style) for name, (ids, style) in parts.items()]
    return Text.assemble((f"row {pair.row}", "bold"), *lines)


@dataclass(frozen=True)
class Seen:
    """What is remembered of training pairs. lengths: of each part, in tokens. prompts, whole: how often each is there,
    by its hash."""

    lengths: dict[str, list[int]]
    prompts: Counter[bytes]
    whole: Counter[bytes]

    @staticmethod
    def of(pairs: TokenizedData, count: int) -> "Seen":
        """Look at so many of them."""
        seen = Seen({"prompt": [], "chosen": [], "rejected": []}, Counter(), Counter())
        for pair in pairs.first(count):
            parts = pair.prompt_ids, pair.chosen_ids, pair.rejected_ids
            for name, ids in zip(seen.lengths, parts, strict=True):
                seen.lengths[name].append(len(ids))
            seen.prompts[_key(pair.prompt_ids)] += 1
            seen.whole[_key(*parts)] += 1
        return seen


def figures(pairs: TokenizedData, seen: Seen, batch: int) -> Table:
    """What one should know of the data, a line each."""
    chosen, rejected = seen.lengths["chosen"], seen.lengths["rejected"]
    whole = [sum(of) for of in zip(*seen.lengths.values(), strict=True)]
    # two rows a pair, each as long as the longest of its step
    longest = [p + max(c, r) for p, c, r in zip(seen.lengths["prompt"], chosen, rejected, strict=True)]
    padded = sum(2 * len(longest[i : i + batch]) * max(longest[i : i + batch]) for i in range(0, len(longest), batch))
    twice = sum(whole) + sum(seen.lengths["prompt"])
    alike = len(whole) - len(seen.whole)
    held = {_key(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in pairs.held_out}
    both = sum(count for key, count in seen.whole.items() if key in held)
    several = sum(count > 1 for count in seen.prompts.values())
    longer = sum(c > r for c, r in zip(chosen, rejected, strict=True)) / len(whole)
    difference = statistics.fmean(c - r for c, r in zip(chosen, rejected, strict=True))
    average, again = statistics.fmean(whole), sum(seen.lengths["prompt"]) / twice
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, said in {
        "tokens": f"{sum(whole):,}, {average:,.0f} a pair with its prompt once; {pairs.truncated:,} pairs cut",
        "padding": f"{1 - twice / padded:.0%} of all, were each answer padded to the longest of its step",
        "prompts": f"{again:.0%} of the rest are prompts a second time, were each answer a row",
        "shared prompts": f"{several:,} of {len(seen.prompts):,} prompts have several pairs",
        "duplicates": f"{alike:,} pairs are there more than once; {both:,} are held out as well",
        "length bias": f"the chosen answer is the longer one in {longer:.0%}, by {difference:+.1f} tokens on average",
    }.items():
        table.add_row(Text(name, "bold"), Text(said))
    return table


def histogram(numbers: Sequence[int], style: str) -> Table:
    """Lengths in bins of equal width, as bars."""
    low, high = min(numbers), max(numbers)
    width = max(1, -(-(high + 1 - low) // BINS))
    counts = Counter((number - low) // width for number in numbers)
    most = max(counts.values())
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    for place in range((high - low) // width + 1):
        first, count = low + place * width, counts[place]
        name = str(first) if width == 1 else f"{first}-{first + width - 1}"
        table.add_row(name, Text("█" * round(BAR * count / most) or ("▏" if count else ""), style), f"{count:,}")
    return table


def _key(*parts: Tensor) -> bytes:
    return hashlib.blake2b(b"".join(len(ids).to_bytes(4) + ids.numpy().tobytes() for ids in parts)).digest()[:16]


def _few(rows: Sequence[int]) -> str:
    return "rows " + ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")


if __name__ == "__main__":
    sys.exit(main())
