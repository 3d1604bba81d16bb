"""PreferencePair -> TokenizedPair: chat templates, where prompt and answer part, EOS, truncation."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jinja2 import TemplateError

from orpo_exp.data.base import PLAIN, Lengths
from orpo_exp.data.kept import AT_ONCE
from orpo_exp.data.rows import UnusableRow
from orpo_exp.types import PreferencePair, TokenizedPair

Ids = tuple[list[int], list[int], list[int]]  # of a prompt, its chosen and its rejected answer
Texts = tuple[str, str, str]  # of the same


@dataclass(frozen=True)
class Encoded:
    """A usable pair. ids: as lists of Python's numbers. truncated: whether it was cut; moved: whether it is parted
    before the end of its prompt."""

    ids: Ids
    truncated: bool
    moved: bool


# For conversations where the tokenizer has no template of its own: the speaker's name before each turn.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)


def kept_lengths(prompt: int, chosen: int, rejected: int, max_length: int, min_prompt_length: int) -> tuple[int, int]:
    """How many tokens of a prompt, from its end, and how many of each answer, from its start, fit into max_length.

    The prompt is cut first, down to min_prompt_length; then both answers to what is left, both to the same length.
    """
    longest = max(chosen, rejected)
    if prompt + longest <= max_length:
        return prompt, longest
    kept_prompt = min(prompt, max(max_length - longest, min_prompt_length))
    return kept_prompt, max_length - kept_prompt


def read_template(given: str | None) -> str | None:
    """The Jinja template that `DataConfig.chat_template` asks for; None: the tokenizer's."""
    if given is None or given == PLAIN:
        return PLAIN_TEMPLATE if given else None
    return Path(given).expanduser().read_text(encoding="utf-8")


class PairTokenizer:
    """Tokenizes pairs so that both answers continue the very same prompt tokens.

    whole: each answer together with its prompt, as a model sees it, parted where the prompt ends; where a token reaches
    over that, or both texts have other tokens before, at the last place where neither is so. Else prompt and answers
    apart. template: that of conversations, None for the tokenizer's. lengths: which pairs are used.

    An answer ends with EOS unless it was cut.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        min_prompt_length: int,
        whole: bool = False,
        template: str | None = None,
        lengths: Lengths = Lengths(),  # noqa: B008  # it is frozen
    ) -> None:
        self.tokenizer, self.max_length, self.min_prompt_length = tokenizer, max_length, min_prompt_length
        self.whole, self.lengths = whole, lengths
        self.eos: int = tokenizer.eos_token_id
        first = tokenizer("").input_ids[:1]  # what the tokenizer itself puts before a text
        self.prefix: list[int] = first if first == [tokenizer.bos_token_id] else []
        self.why_plain = "asked for" if template else "the tokenizer has no chat template"
        self.template = template or (None if tokenizer.chat_template else PLAIN_TEMPLATE)

    def __call__(self, pairs: Sequence[PreferencePair]) -> list[Encoded | str]:
        """What each pair comes to; of one that cannot be used, why."""
        return [
            of for some in self.stream(pairs[i : i + AT_ONCE] for i in range(0, len(pairs), AT_ONCE)) for of in some
        ]

    def stream(self, batches: Iterable[Sequence[PreferencePair]]) -> Iterator[list[Encoded | str]]:
        """The same for many pairs, some at a time. The next ones are tokenized meanwhile."""
        with ThreadPoolExecutor(1) as ahead:
            coming: Future[list[tuple[Texts | str, Any]]] | None = None
            for pairs in batches:
                ready, coming = coming, ahead.submit(self._tokenized, pairs)
                if ready:
                    yield self._assembled(ready.result())
            if coming:
                yield self._assembled(coming.result())

    def _tokenized(self, pairs: Sequence[PreferencePair]) -> list[tuple[Texts | str, Any]]:
        """Each pair's texts with their tokens, spread over all cores by the tokenizer; or why there are none."""
        rendered: list[Texts | str] = []
        for pair in pairs:
            try:
                rendered.append(self.render(pair))
            except UnusableRow as reason:
                rendered.append(str(reason))
        of_pairs = [self._pieces(texts) for texts in rendered if not isinstance(texts, str)]
        encodings = iter(self._encodings([text for texts in of_pairs for text in texts]))
        return [(of, None if isinstance(of, str) else [next(encodings) for _ in self._pieces(of)]) for of in rendered]

    def _pieces(self, texts: Texts) -> tuple[str, ...]:
        """What is tokenized as one text each."""
        prompt, chosen, rejected = texts
        return (prompt + chosen, prompt + rejected) if self.whole else texts

    def _encodings(self, texts: list[str]) -> Sequence[Any]:
        """Of each text an object with `ids` and, for whole texts, `offsets`."""
        if not self.tokenizer.is_fast:
            found = self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
            return [SimpleNamespace(ids=ids) for ids in found]
        backend = self.tokenizer.backend_tokenizer  # what `tokenizer(...)` calls as well; that takes as long again
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        encode = backend.encode_batch if self.whole else backend.encode_batch_fast  # which leaves the offsets out
        return encode(texts, add_special_tokens=False)

    def _assembled(self, tokenized: Sequence[tuple[Texts | str, Any]]) -> list[Encoded | str]:
        found: list[Encoded | str] = []
        for texts, encodings in tokenized:
            if isinstance(texts, str):
                found.append(texts)
                continue
            ids, moved = self._parted(encodings, len(texts[0])) if self.whole else ([of.ids for of in encodings], False)
            try:
                found.append(self.assemble(ids, moved))
            except UnusableRow as reason:
                found.append(str(reason))
        return found

    @staticmethod
    def _parted(encodings: Sequence[Any], end: int) -> tuple[Ids, bool]:
        """Prompt and answers out of the tokens of both whole texts; whether they are parted before the prompt's end, so
        many characters from the start."""
        chosen, rejected = (of.ids for of in encodings)
        offsets = [of.offsets for of in encodings]
        within = min(next((i for i, (_, last) in enumerate(of) if last > end), len(of)) for of in offsets)
        split = next((k for k in range(within) if chosen[k] != rejected[k]), within)
        moved = split == 0 or offsets[0][split - 1][1] < end
        return (chosen[:split], chosen[split:], rejected[split:]), moved

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

    def assemble(self, ids: Sequence[list[int]], moved: bool) -> Encoded:
        """EOS and BOS in place, truncated; UnusableRow where nothing usable is left."""
        prompt, chosen, rejected = ids
        if refused := self.lengths.refused(len(prompt), len(chosen), len(rejected)):
            raise UnusableRow(refused)
        prompt = prompt if prompt[:1] == self.prefix else self.prefix + prompt
        if not prompt:
            raise UnusableRow("no prompt")
        chosen, rejected = self._end(chosen), self._end(rejected)
        kept_prompt, kept_answer = kept_lengths(
            len(prompt), len(chosen), len(rejected), self.max_length, self.min_prompt_length
        )
        truncated = kept_prompt < len(prompt) or kept_answer < max(len(chosen), len(rejected))
        chosen, rejected = chosen[:kept_answer], rejected[:kept_answer]
        if chosen == rejected:
            raise UnusableRow("chosen and rejected are the same as tokens, or as far as max_length reaches")
        if len(self.prefix) < kept_prompt < len(prompt):
            prompt = self.prefix + prompt[len(prompt) - kept_prompt + len(self.prefix) :]
        return Encoded((prompt[-kept_prompt:], chosen, rejected), truncated, moved)

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


def tokenized_pair(row: int, ids: Ids) -> TokenizedPair:
    """A pair as the loop draws it."""
    prompt, chosen, rejected = (torch.tensor(part, dtype=torch.int32) for part in ids)
    return TokenizedPair(row, prompt, chosen, rejected)
