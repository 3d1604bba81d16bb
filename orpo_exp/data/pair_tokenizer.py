"""PreferencePair -> TokenizedPair: chat templates, where prompt and answer part, EOS, truncation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError

from orpo_exp.data.base import PLAIN
from orpo_exp.data.rows import UnusableRow
from orpo_exp.types import PreferencePair, TokenizedPair

Ids = tuple[list[int], list[int], list[int]]  # of a prompt, its chosen and its rejected answer

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
    over that, or both texts have other tokens before, at the last place where neither is so (`moved` counts these
    pairs). Else prompt and answers apart. template: that of conversations, None for the tokenizer's.

    An answer ends with EOS unless it was cut. `truncated` counts the pairs that were.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        min_prompt_length: int,
        whole: bool = False,
        template: str | None = None,
    ) -> None:
        self.tokenizer, self.max_length, self.min_prompt_length = tokenizer, max_length, min_prompt_length
        self.whole, self.moved = whole, 0
        self.eos: int = tokenizer.eos_token_id
        first = tokenizer("").input_ids[:1]  # what the tokenizer itself puts before a text
        self.prefix: list[int] = first if first == [tokenizer.bos_token_id] else []
        self.why_plain = "asked for" if template else "the tokenizer has no chat template"
        self.template = template or (None if tokenizer.chat_template else PLAIN_TEMPLATE)
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
        ids_of = self._whole_ids if self.whole else self._apart_ids
        for (pair, _), ids in zip(rendered, ids_of([texts for _, texts in rendered]), strict=True):
            try:
                usable.append(self.assemble(pair, *ids))
            except UnusableRow as reason:
                unusable.append((pair.row, str(reason)))
        return usable, unusable

    def _apart_ids(self, rendered: Sequence[tuple[str, str, str]]) -> list[Ids]:
        """Prompt and answers as lists of ids, each tokenized by itself."""
        ids = iter(self._tokenized([text for texts in rendered for text in texts]).input_ids if rendered else [])
        return list(zip(ids, ids, ids, strict=True))

    def _whole_ids(self, rendered: Sequence[tuple[str, str, str]]) -> list[Ids]:
        """Prompt and answers as lists of ids, out of the tokens of each whole text."""
        texts = [prompt + answer for prompt, *answers in rendered for answer in answers]
        tokenized = self._tokenized(texts, return_offsets_mapping=True) if texts else None
        parted: list[Ids] = []
        for place, (prompt, *_) in enumerate(rendered):
            assert tokenized is not None
            chosen, rejected = (tokenized.input_ids[2 * place + i] for i in (0, 1))
            ends = [end for _, end in tokenized.offset_mapping[2 * place]]
            within = min(self._within(tokenized.offset_mapping[2 * place + i], len(prompt)) for i in (0, 1))
            split = next((k for k in range(within) if chosen[k] != rejected[k]), within)
            self.moved += split == 0 or ends[split - 1] < len(prompt)
            parted.append((chosen[:split], chosen[split:], rejected[split:]))
        return parted

    @staticmethod
    def _within(offsets: Sequence[tuple[int, int]], end: int) -> int:
        """How many of a text's first tokens end by this character."""
        return next((place for place, (_, last) in enumerate(offsets) if last > end), len(offsets))

    def _tokenized(self, texts: Sequence[str], **more: bool) -> Any:
        """Of many texts, spread over threads by the tokenizer."""
        only_ids = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        return self.tokenizer(texts, verbose=False, **only_ids, **more)

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
