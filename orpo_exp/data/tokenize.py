"""What a source loads, as tokens."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from orpo_exp.data.base import IN_EVALUATION, IN_TEST, DataConfig, SourceData
from orpo_exp.data.kept import AT_ONCE, Kept
from orpo_exp.data.pair_tokenizer import PLAIN_TEMPLATE, Encoded, PairTokenizer, read_template, tokenized_pair
from orpo_exp.data.texts import Texts, digest_of
from orpo_exp.data.tokens import Tokens, tokens_of
from orpo_exp.data.views import View
from orpo_exp.files import write_atomically
from orpo_exp.schema import ConfigError, Refused
from orpo_exp.types import Need, PreferencePair, TokenizedPair

log = logging.getLogger(__name__)

FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class TokenizedData:
    """What the loop draws from.

    train: positions -> pairs; size as in SourceData, less what proved unusable as tokens.
    held_out: the whole evaluation set.
    texts: the held-out pairs as text, in the order of `held_out`, for samples.
    skipped: reason -> rows; truncated: pairs of the finite training set, the evaluation and the test set that were cut.
    max_length: tokens of prompt and answer together, at most. form: as in SourceData.
    kept: where what takes long is kept, and what tells these pairs from others; None for pairs that are not.
    test, test_texts: those that are scored once, after training; none in most runs.
    """

    train: Callable[[Sequence[int]], list[TokenizedPair]]
    size: int | None
    held_out: Sequence[TokenizedPair]
    texts: Sequence[PreferencePair]
    skipped: dict[str, list[int]]
    truncated: int
    max_length: int
    form: str = ""
    kept: tuple[Kept, str] | None = None
    test: Sequence[TokenizedPair] = ()
    test_texts: Sequence[PreferencePair] = ()

    def first(self, count: int | None) -> Iterator[TokenizedPair]:
        """So many training pairs, of which some are held at a time; None, or more than there are: all."""
        last = self.size if count is None or (self.size is not None and count > self.size) else count
        assert last is not None
        for begin in range(0, last, AT_ONCE):
            yield from self.train(range(begin, min(begin + AT_ONCE, last)))

    def each(self) -> Iterator[TokenizedPair]:
        """All held-out pairs, those of the test, and the training pairs of a finite source."""
        yield from self.held_out
        yield from self.test
        yield from self.first(self.size or 0)

    def within(self, positions: int | None) -> "TokenizedData":
        """The same for a model of so many positions, None for no limit. ConfigError where a pair is longer than that.

        An endless source is looked at as it is drawn from.
        """
        if positions is None or self.max_length <= positions:
            return self

        def check(pair: TokenizedPair) -> TokenizedPair:
            longest = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
            if longest > positions:
                allowed = f"at most {positions}, the model's positions: row {pair.row} has {longest} tokens"
                raise ConfigError("data.max_length", self.max_length, allowed, "Lower it, or take another model.")
            return pair

        for pair in self.each():
            check(pair)
        drawn = self.train
        train = drawn if self.size is not None else lambda wanted: [check(pair) for pair in drawn(wanted)]
        return dataclasses.replace(self, train=train, max_length=positions)

    def completed(self, pairs: Sequence[TokenizedPair], needs: frozenset[Need]) -> Sequence[TokenizedPair]:
        """The pairs with what is needed from beyond each of them."""
        return self.with_mismatched(pairs) if Need.mismatched in needs else pairs

    def with_mismatched(self, pairs: Sequence[TokenizedPair]) -> list[TokenizedPair]:
        """Each pair with the answers of the next one, the last with those of the first; cut to fit behind its prompt.

        A single pair, which is its own next one, gets those of a training pair. Raises Refused where that is the same.
        """
        following = [*pairs[1:], *pairs[:1]]
        if len(pairs) == 1:
            first = self.train(range(2 if self.size is None else min(2, self.size)))
            following = [other for other in first if other.row != pairs[0].row][:1]
            if not following:
                raise Refused("a single pair has no mismatched answers: this loss needs another pair; add data")
        fitting: list[TokenizedPair] = []
        for pair, after in zip(pairs, following, strict=True):
            room = self.max_length - len(pair.prompt_ids)
            fitting.append(dataclasses.replace(pair, mismatched=(after.chosen_ids[:room], after.rejected_ids[:room])))
        return fitting

    def fingerprint(self) -> str:
        """A hexadecimal hash of all tokens of a finite source; of the held-out ones where it is endless."""
        if self.kept is None:
            return self._hash()
        kept, key = self.kept
        folder = kept.make("fingerprint", key, lambda of: write_atomically(of / FINGERPRINT, self._hash()))
        return (folder / FINGERPRINT).read_text()

    def _hash(self) -> str:
        digest = hashlib.sha256()
        digest_pairs(digest, self.each())
        return digest.hexdigest()


def digest_pairs(digest: "hashlib._Hash", pairs: Iterable[TokenizedPair]) -> None:
    """Feed the tokens of pairs to a hash."""
    for pair in pairs:
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
            digest.update(len(ids).to_bytes(8, "little") + ids.numpy().tobytes())


@dataclass(frozen=True)
class Usable:
    """The usable ones of some pairs. unusable: reason -> rows of the others. truncated, moved: how many are, see
    Encoded. key: what tells kept ones from others."""

    pairs: Sequence[TokenizedPair]
    texts: Sequence[PreferencePair]
    unusable: dict[str, list[int]]
    truncated: int
    moved: int
    key: str = ""


def usable_now(encode: PairTokenizer, pairs: Sequence[PreferencePair]) -> Usable:
    """Of pairs that are held in memory."""
    encoded = list(zip(pairs, encode(pairs), strict=True))
    of = [(pair, found) for pair, found in encoded if isinstance(found, Encoded)]
    unusable: dict[str, list[int]] = {}
    for pair, why in encoded:
        if isinstance(why, str):
            unusable.setdefault(why, []).append(pair.row)
    tokenized = [tokenized_pair(pair.row, found.ids) for pair, found in of]
    truncated, moved = sum(found.truncated for _, found in of), sum(found.moved for _, found in of)
    return Usable(tokenized, [pair for pair, _ in of], unusable, truncated, moved)


def usable_kept(texts: Sequence[Texts], tokens: Sequence[Tokens], positions: Tensor) -> Usable:
    """Of pairs that are kept on disk. positions: (n,) int64, through all texts."""
    begins = accumulate((len(of) for of in texts), initial=0)
    why = {
        begin + place: said for begin, of in zip(begins, tokens, strict=False) for place, said in of.unusable.items()
    }
    out = torch.isin(positions, torch.tensor(list(why), dtype=torch.int64))
    places, unusable = positions[~out], dict[str, list[int]]()
    for pair, position in zip(View(texts, positions[out]), positions[out].tolist(), strict=True):
        unusable.setdefault(why[position], []).append(pair.row)
    truncated, moved = (int(torch.cat([getattr(of, m) for of in tokens])[places].sum()) for m in ("truncated", "moved"))
    key = " ".join([*(of.key for of in tokens), digest_of(places)])
    return Usable(View(tokens, places), View(texts, places), unusable, truncated, moved, key)


def prepare(data: SourceData, tokenizer: Any, config: DataConfig) -> TokenizedData:
    """Tokenize everything of a finite source now, where that is not kept from before; an endless one as it is drawn.

    Raises Refused where no pair is left to train or to evaluate on.
    """
    template = read_template(config.chat_template)
    lengths = (config.max_length, config.min_prompt_length)
    if config.whole_text and not tokenizer.is_fast:
        allowed = "false: this model's tokenizer does not say where in a text its tokens are"
        raise ConfigError("data.whole_text", True, allowed, "Leave it out, or take a fast tokenizer.")
    encode = PairTokenizer(tokenizer, *lengths, config.whole_text, template, config.lengths)
    if encode.template == PLAIN_TEMPLATE and any(not isinstance(pair.prompt, str) for pair in data.held_out):
        log.info("turns are written as `User: ...`, `Assistant: ...`: %s", encode.why_plain)
    kept = None
    if data.kept is None:
        train = usable_now(encode, [data.train[place] for place in range(data.size or 0)])
        held_out, test = usable_now(encode, data.held_out), usable_now(encode, data.test)
    else:
        tokens, of = tokens_of(data.kept.texts, encode), data.kept
        train, held_out, test = (usable_kept(of.texts, tokens, places) for places in (of.train, of.held_out, of.test))
        kept = of.texts[0].kept, " ".join([train.key, held_out.key, *([test.key] if test.pairs else [])])
    if not held_out.pairs:
        raise Refused(f"no held-out pair is usable as tokens: {first_rows(held_out.unusable)}")
    if data.test and not test.pairs:
        raise Refused(f"no pair of the test is usable as tokens: {first_rows(test.unusable)}")
    if data.size is not None and not train.pairs:
        raise Refused(f"no training pair is usable as tokens: {first_rows(train.unusable)}")
    skipped = {reason: list(rows) for reason, rows in data.skipped.items()}
    for where, unusable in ((IN_EVALUATION, held_out.unusable), (IN_TEST, test.unusable), ("", train.unusable)):
        for reason, rows in unusable.items():
            skipped.setdefault(where + reason, []).extend(rows)

    def drawn(positions: Sequence[int]) -> list[TokenizedPair]:
        found = usable_now(encode, [data.train[p] for p in positions])
        assert not found.unusable, found.unusable  # an endless source makes only pairs that fit
        return list(found.pairs)

    tell_of_seams(encode, train.moved + held_out.moved + test.moved, held_out)
    return TokenizedData(
        train=drawn if data.size is None else lambda positions: [train.pairs[p] for p in positions],
        size=None if data.size is None else len(train.pairs),
        held_out=held_out.pairs,
        texts=held_out.texts,
        skipped=skipped,
        truncated=train.truncated + held_out.truncated + test.truncated,
        max_length=config.max_length,
        form=data.form,
        kept=kept,
        test=test.pairs,
        test_texts=test.texts,
    )


def first_rows(unusable: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Reasons, each with the first of its rows."""
    return {why: rows[:5] for why, rows in unusable.items()}


def training_texts(data: SourceData, limit: int = 20_000) -> Iterator[str]:
    """Texts of the first `limit` training pairs, for a tokenizer that is trained on them."""
    for position in range(limit if data.size is None else min(limit, data.size)):
        pair = data.train[position]
        yield from [pair.prompt] if isinstance(pair.prompt, str) else [turn["content"] for turn in pair.prompt]
        yield from (pair.chosen, pair.rejected)


def tell_of_seams(encode: PairTokenizer, moved: int, held_out: Usable, most: int = 200) -> None:
    """Say how many pairs have tokens that reach over the end of the prompt; or, where prompt and answers are tokenized
    apart, how many of some held-out pairs would have other tokens as whole texts."""
    if encode.whole:
        log.info("%d pairs are parted before the end of their prompt, for a token reaches over it", moved)
        return
    if not encode.tokenizer.is_fast:
        return
    whole = PairTokenizer(encode.tokenizer, encode.max_length, encode.min_prompt_length, True, encode.template)
    some = usable_now(whole, list(held_out.texts[:most])).pairs
    joint = {pair.row: _chained(pair) for pair in some}
    other = sum(_chained(pair) != joint[pair.row] for pair in held_out.pairs[:most] if pair.row in joint)
    if other:
        log.info("%d of %d held-out pairs have other tokens as whole texts: data.whole_text", other, len(some))


def _chained(pair: TokenizedPair) -> tuple[list[int], list[int]]:
    prompt = pair.prompt_ids.tolist()
    return prompt + pair.chosen_ids.tolist(), prompt + pair.rejected_ids.tolist()
