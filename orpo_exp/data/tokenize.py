"""What a source loads, as tokens."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orpo_exp.data.base import IN_EVALUATION, DataConfig, SourceData
from orpo_exp.data.pair_tokenizer import PLAIN_TEMPLATE, PairTokenizer, read_template
from orpo_exp.schema import ConfigError, Refused
from orpo_exp.types import PreferencePair, TokenizedPair

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedData:
    """What the loop draws from.

    train: positions -> pairs; size as in SourceData, less what proved unusable as tokens.
    held_out: the whole evaluation set.
    texts: the held-out pairs as text, in the order of `held_out`, for samples.
    skipped: reason -> rows; truncated: pairs of the finite training set and the evaluation set that were cut.
    max_length: tokens of prompt and answer together, at most. form: as in SourceData.
    """

    train: Callable[[Sequence[int]], list[TokenizedPair]]
    size: int | None
    held_out: list[TokenizedPair]
    texts: list[PreferencePair]
    skipped: dict[str, list[int]]
    truncated: int
    max_length: int
    form: str = ""

    def within(self, positions: int | None) -> "TokenizedData":
        """The same for a model of so many positions, None for no limit. ConfigError where a pair is longer than that.

        An endless source is looked at as it is drawn from.
        """
        if positions is None or self.max_length <= positions:
            return self

        def checked(pairs: list[TokenizedPair]) -> list[TokenizedPair]:
            for pair in pairs:
                longest = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
                if longest > positions:
                    allowed = f"at most {positions}, the model's positions: row {pair.row} has {longest} tokens"
                    raise ConfigError("data.max_length", self.max_length, allowed, "Lower it, or take another model.")
            return pairs

        checked([*self.held_out, *self.train(range(self.size or 0))])
        train = self.train if self.size is not None else lambda wanted: checked(self.train(wanted))
        return dataclasses.replace(self, train=train, max_length=positions)

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
        digest = hashlib.sha256()
        digest_pairs(digest, [*self.held_out, *self.train(range(self.size or 0))])
        return digest.hexdigest()


def digest_pairs(digest: "hashlib._Hash", pairs: Sequence[TokenizedPair]) -> None:
    """Feed the tokens of pairs to a hash."""
    for pair in pairs:
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
            digest.update(len(ids).to_bytes(8, "little") + ids.numpy().tobytes())


def prepare(data: SourceData, tokenizer: Any, config: DataConfig) -> TokenizedData:
    """Tokenize everything of a finite source now, an endless one as it is drawn.

    Raises Refused where no pair is left to train or to evaluate on.
    """
    encode = PairTokenizer(
        tokenizer, config.max_length, config.min_prompt_length, config.whole_text, read_template(config.chat_template)
    )
    if encode.template == PLAIN_TEMPLATE and any(not isinstance(pair.prompt, str) for pair in data.held_out):
        log.info("turns are written as `User: ...`, `Assistant: ...`: %s", encode.why_plain)
    held_out, dropped = encode(data.held_out)
    if not held_out:
        raise Refused(f"no held-out pair is usable as tokens: {dropped[:5]}")
    kept = {pair.row for pair in held_out}
    texts = [pair for pair in data.held_out if pair.row in kept]
    skipped = {reason: list(rows) for reason, rows in data.skipped.items()}
    for row, reason in dropped:
        skipped.setdefault(IN_EVALUATION + reason, []).append(row)

    def drawn(positions: Sequence[int]) -> list[TokenizedPair]:
        pairs, unusable = encode([data.train[p] for p in positions])
        assert not unusable, unusable  # an endless source makes only pairs that fit
        return pairs

    train, size = drawn, None
    if data.size is not None:
        pairs, unusable = encode([data.train[p] for p in range(data.size)])
        for row, reason in unusable:
            skipped.setdefault(reason, []).append(row)
        if not pairs:
            raise Refused(f"no training pair is usable as tokens: {unusable[:5]}")
        train, size = lambda positions: [pairs[p] for p in positions], len(pairs)
    tell_of_seams(encode, data.held_out, held_out)
    return TokenizedData(train, size, held_out, texts, skipped, encode.truncated, config.max_length, data.form)


def training_texts(data: SourceData, limit: int = 20_000) -> Iterator[str]:
    """Texts of the first `limit` training pairs, for a tokenizer that is trained on them."""
    for position in range(limit if data.size is None else min(limit, data.size)):
        pair = data.train[position]
        yield from [pair.prompt] if isinstance(pair.prompt, str) else [turn["content"] for turn in pair.prompt]
        yield from (pair.chosen, pair.rejected)


def tell_of_seams(
    encode: PairTokenizer, pairs: Sequence[PreferencePair], tokenized: Sequence[TokenizedPair], most: int = 200
) -> None:
    """Say how many pairs have tokens that reach over the end of the prompt; or, where prompt and answers are tokenized
    apart, how many of some pairs would have other tokens as whole texts. tokenized: the usable ones of the pairs."""
    if encode.whole:
        log.info("%d pairs are parted before the end of their prompt, for a token reaches over it", encode.moved)
        return
    whole = PairTokenizer(encode.tokenizer, encode.max_length, encode.min_prompt_length, True, encode.template)
    some = pairs[:most]
    joint = {pair.row: _chained(pair) for pair in whole(some)[0]}
    other = sum(_chained(pair) != joint[pair.row] for pair in tokenized[:most] if pair.row in joint)
    if other:
        log.info("%d of %d held-out pairs have other tokens as whole texts: data.whole_text", other, len(some))


def _chained(pair: TokenizedPair) -> tuple[list[int], list[int]]:
    prompt = pair.prompt_ids.tolist()
    return prompt + pair.chosen_ids.tolist(), prompt + pair.rejected_ids.tolist()
