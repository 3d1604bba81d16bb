"""PreferencePair -> TokenizedPair: chat templates, EOS and truncation."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError

from orpo_exp.data.base import IN_EVALUATION, SourceData
from orpo_exp.data.rows import UnusableRow
from orpo_exp.schema import ConfigError, Refused
from orpo_exp.types import PreferencePair, TokenizedPair

# How many pairs are tokenized at once: for a moment their ids are lists of Python's numbers, ten times as large.
AT_ONCE = 1000

# For conversations where the tokenizer has no template of its own: the speaker's name before each turn.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)


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


def prepare(data: SourceData, tokenizer: Any, max_length: int, min_prompt_length: int) -> TokenizedData:
    """Tokenize everything of a finite source now, an endless one as it is drawn.

    Raises Refused where no pair is left to train or to evaluate on.
    """
    encode = PairTokenizer(tokenizer, max_length, min_prompt_length)
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
    return TokenizedData(train, size, held_out, texts, skipped, encode.truncated, max_length, data.form)


def training_texts(data: SourceData, limit: int = 20_000) -> Iterator[str]:
    """Texts of the first `limit` training pairs, for a tokenizer that is trained on them."""
    for position in range(limit if data.size is None else min(limit, data.size)):
        pair = data.train[position]
        yield from [pair.prompt] if isinstance(pair.prompt, str) else [turn["content"] for turn in pair.prompt]
        yield from (pair.chosen, pair.rejected)


def kept_lengths(prompt: int, chosen: int, rejected: int, max_length: int, min_prompt_length: int) -> tuple[int, int]:
    """How many tokens of a prompt, from its end, and how many of each answer, from its start, fit into max_length.

    The prompt is cut first, down to min_prompt_length; then both answers to what is left, both to the same length.
    """
    longest = max(chosen, rejected)
    if prompt + longest <= max_length:
        return prompt, longest
    kept_prompt = min(prompt, max(max_length - longest, min_prompt_length))
    return kept_prompt, max_length - kept_prompt


class PairTokenizer:
    """Tokenizes pairs: prompt and answers apart, so that both answers continue the very same prompt.

    An answer ends with EOS unless it was cut. `truncated` counts the pairs that were.
    """

    def __init__(self, tokenizer: Any, max_length: int, min_prompt_length: int) -> None:
        self.tokenizer, self.max_length, self.min_prompt_length = tokenizer, max_length, min_prompt_length
        self.eos: int = tokenizer.eos_token_id
        first = tokenizer("").input_ids[:1]  # what the tokenizer itself puts before a text
        self.prefix: list[int] = first if first == [tokenizer.bos_token_id] else []
        self.template: str | None = None if tokenizer.chat_template else PLAIN_TEMPLATE
        self.truncated = 0

    def __call__(self, pairs: Sequence[PreferencePair]) -> tuple[list[TokenizedPair], list[tuple[int, str]]]:
        """The usable pairs, and the others' rows with reasons."""
        usable: list[TokenizedPair] = []
        unusable: list[tuple[int, str]] = []
        for first in range(0, len(pairs), AT_ONCE):
            some, others = self._encode(pairs[first : first + AT_ONCE])
            usable += some
            unusable += others
        return usable, unusable

    def _encode(self, pairs: Sequence[PreferencePair]) -> tuple[list[TokenizedPair], list[tuple[int, str]]]:
        rendered: list[tuple[PreferencePair, tuple[str, str, str]]] = []
        usable: list[TokenizedPair] = []
        unusable: list[tuple[int, str]] = []
        for pair in pairs:
            try:
                rendered.append((pair, self.render(pair)))
            except UnusableRow as reason:
                unusable.append((pair.row, str(reason)))
        # three texts for each pair, spread over threads by the tokenizer; out come as many lists of ids
        texts = [text for _, of_pair in rendered for text in of_pair]
        only_ids = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        encoded = iter(self.tokenizer(texts, verbose=False, **only_ids).input_ids if texts else [])
        for pair, _ in rendered:
            try:
                usable.append(self.assemble(pair, next(encoded), next(encoded), next(encoded)))
            except UnusableRow as reason:
                unusable.append((pair.row, str(reason)))
        return usable, unusable

    def render(self, pair: PreferencePair) -> tuple[str, str, str]:
        """Turns -> text, three times; UnusableRow where the chat template refuses the turns or rewrites the prompt."""
        if isinstance(pair.prompt, str):
            return pair.prompt, pair.chosen, pair.rejected
        turns = list(pair.prompt)
        try:
            prompt = self._apply(turns, generate=True)
            chosen, rejected = (
                self._apply([*turns, {"role": "assistant", "content": answer}], generate=False)
                for answer in (pair.chosen, pair.rejected)
            )
        except TemplateError as error:
            raise UnusableRow(f"the chat template refuses the conversation: {str(error)[:80]}") from error
        if not (chosen.startswith(prompt) and rejected.startswith(prompt)):
            raise UnusableRow("the chat template does not continue the prompt")
        return prompt, chosen[len(prompt) :], rejected[len(prompt) :]

    def assemble(
        self, pair: PreferencePair, prompt: list[int], chosen: list[int], rejected: list[int]
    ) -> TokenizedPair:
        """Lists of ids -> int32 tensors, EOS and BOS in place, truncated; UnusableRow where nothing usable is left."""
        prompt = prompt if prompt[:1] == self.prefix else self.prefix + prompt
        if not prompt:
            raise UnusableRow("no prompt")
        chosen, rejected = self._end(chosen), self._end(rejected)
        kept_prompt, kept_answer = kept_lengths(
            len(prompt), len(chosen), len(rejected), self.max_length, self.min_prompt_length
        )
        if kept_prompt < len(prompt) or kept_answer < max(len(chosen), len(rejected)):
            self.truncated += 1
        chosen, rejected = chosen[:kept_answer], rejected[:kept_answer]
        if chosen == rejected:
            raise UnusableRow("chosen and rejected are the same as tokens, or as far as max_length reaches")
        if len(self.prefix) < kept_prompt < len(prompt):
            prompt = self.prefix + prompt[len(prompt) - kept_prompt + len(self.prefix) :]
        ids = [torch.tensor(part, dtype=torch.int32) for part in (prompt[-kept_prompt:], chosen, rejected)]  # (tokens,)
        return TokenizedPair(pair.row, ids[0], ids[1], ids[2])

    def _end(self, answer: list[int]) -> list[int]:
        """The answer up to its last EOS; a template may put a newline behind it. One is added where there is none."""
        after = len(answer) - answer[::-1].index(self.eos) if self.eos in answer else 0
        if after and not self.tokenizer.decode(answer[after:]).strip():
            return answer[:after]
        return [*answer, self.eos]

    def _apply(self, turns: list[Any], generate: bool) -> str:
        return self.tokenizer.apply_chat_template(
            turns, chat_template=self.template, tokenize=False, add_generation_prompt=generate
        )
