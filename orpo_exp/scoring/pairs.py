"""From a model's hidden states to the log-probabilities of the tokens that are scored, chunk by chunk."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from orpo_exp.scoring.linear import Head, LinearHead, linear_logps
from orpo_exp.scoring.softmax import CHUNK_NUMBERS, WHOLE, Vocabulary, overwritable, picked
from orpo_exp.types import PairLogps, ScoreIndex, TokenLogps


@contextmanager
def captured_hidden(output_embeddings: nn.Module) -> Iterator[list[Tensor]]:
    """Run a causal LM for its last hidden states alone.

    Inside the context the model's own head is given no position, so that its forward makes no logits, and each forward
    appends the (sequences, positions, hidden) states that would have gone into the head. The model is called as a
    whole, by whatever wraps it: no wrapper has to know. A call of the head with (n, hidden) states is left alone.
    """
    captured: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if args[0].ndim != 3:
            return args
        captured.append(args[0])
        return (args[0][:, :0],)

    handle = output_embeddings.register_forward_pre_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


def pair_logps(hidden: Tensor, head: Head, index: ScoreIndex, vocabulary: Vocabulary = WHOLE) -> PairLogps:
    """Log-probability of every scored token.

    hidden: (sequences, positions, hidden), the states that go into the head.
    head: (n, hidden) -> (n, vocabulary) logits, or the columns of them that `vocabulary` says.
    index: which states to score, against which tokens.
    """
    # (sequences, positions, hidden) -> (scored tokens, hidden), in the order of PairLogps
    states = hidden[index.sequence.to(hidden.device), index.position.to(hidden.device)]
    target = index.target.to(hidden.device)
    return by_span(index, token_logps(states, head, target, log_squared=index.log_squared, vocabulary=vocabulary))


def by_span(index: ScoreIndex, scored: Sequence[Tensor]) -> PairLogps:
    """What `token_logps` gives of an index, (scored tokens,) each, as (tokens,) for each span."""
    sizes = [int(lengths.sum()) for lengths in index.lengths.values()]
    parts = zip(*(numbers.split(sizes) for numbers in scored), strict=True)
    spans = zip(index.lengths.items(), parts, strict=True)
    return PairLogps.from_spans({span: TokenLogps(part[0], lengths, *part[1:]) for (span, lengths), part in spans})


def token_logps(
    hidden: Tensor,
    head: Head,
    target: Tensor,
    chunk_numbers: int = CHUNK_NUMBERS,
    log_squared: bool = False,
    vocabulary: Vocabulary = WHOLE,
) -> tuple[Tensor, ...]:
    """log p(target) under softmax(head(hidden)); with `log_squared` also log sum_v p(v)^2, without gradient.

    hidden (n, hidden) and target (n,) int64 give (n,) float32 tensors. At most `chunk_numbers` logits exist at a time.
    """

    def chunk_logps(states: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        return picked(overwritable(head(states)), tokens, vocabulary, log_squared)

    if isinstance(head, LinearHead) and vocabulary is WHOLE:
        return linear_logps(hidden, head, target, max(1, chunk_numbers // len(head.weight)), log_squared)
    columns = vocabulary.columns or (head(hidden[:1].detach()).shape[-1] if len(hidden) else 1)
    size = max(1, chunk_numbers // columns)
    if len(hidden) <= size:
        return chunk_logps(hidden, target)
    chunks = zip(hidden.split(size), target.split(size), strict=True)
    if torch.is_grad_enabled():
        parts = [checkpoint(chunk_logps, states, tokens, use_reentrant=False) for states, tokens in chunks]
    else:
        parts = [chunk_logps(states, tokens) for states, tokens in chunks]
    return tuple(torch.cat(numbers) for numbers in zip(*parts, strict=True))
