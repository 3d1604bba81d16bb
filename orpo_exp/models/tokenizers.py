"""Tokenizers that need no download: raw bytes, or byte-level BPE trained on the data at hand."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SPECIAL = (PAD, BOS, EOS)
BYTES_VOCABULARY = 256 + len(SPECIAL)


def bytes_tokenizer() -> "PreTrainedTokenizerFast":
    """One token per UTF-8 byte and three special tokens: 259 in all, never an unknown one."""
    return trained_tokenizer([], BYTES_VOCABULARY)  # without texts there is nothing to merge


def trained_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909) of at most `vocab_size` tokens, trained on `texts`.

    It depends on nothing but the texts and the size. Fewer tokens come out where the texts hold fewer pairs to merge.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
