"""Small tokenizers of the kinds that well-known models have, trained on a few words."""

from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from orpo_exp.data.pair_tokenizer import PairTokenizer
from orpo_exp.data.tokenize import usable_now
from orpo_exp.types import PreferencePair, TokenizedPair

CORPUS = [
    "the answer to the question is that the cat sat on the mat and then it sang a song",
    "What is two plus two? It is four, because two and two are four. User: Hi Assistant: Hello!",
    "Äpfel und Birnen über alles; naïve café 日本語 🙂 don't can't won't 1234 56",
] * 20
# what splits text before merging, of the kind that Qwen has
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(split: str | None) -> Tokenizer:
    """BPE of bytes, the space in front of a word a part of it."""
    tokenizer = Tokenizer(models.BPE())
    parts: list[Any] = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, whole])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<eos>"], initial_alphabet=sorted(alphabet))
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _sentencepiece(dummy_space: bool, bos: bool) -> Tokenizer:
    """BPE of characters, spaces among them, what is unknown by bytes; perhaps with a space put before each text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    before = [normalizers.Prepend("▁")] if dummy_space else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] * dummy_space),
        ]
    )
    special = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, max_token_length=8, show_progress=False)
    tokenizer.train_from_iterator([word for line in CORPUS for word in (line, *line.split())], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [("<bos>", 1)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": lambda: _byte_level(None),
    "Qwen": lambda: _byte_level(WORDS),
    "Llama-2": lambda: _sentencepiece(dummy_space=True, bos=True),
    "Mistral": lambda: _sentencepiece(dummy_space=True, bos=True),
    "Gemma": lambda: _sentencepiece(dummy_space=False, bos=True),
}


def made(kind: str) -> Any:
    """A fast tokenizer of transformers'."""
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<bos>"} if KINDS[kind]().token_to_id("<bos>") is not None else {}
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), eos_token="<eos>", **names)


class Tokenizing:
    """A PairTokenizer; of some pairs the usable ones, and of the others their rows with reasons."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self.encode = PairTokenizer(*arguments, **more)

    def __call__(self, pairs: list[PreferencePair]) -> tuple[list[TokenizedPair], list[tuple[int, str]]]:
        done = usable_now(self.encode, pairs)
        self.truncated, self.moved = done.truncated, done.moved
        return list(done.pairs), [(row, why) for why, rows in done.unusable.items() for row in rows]
