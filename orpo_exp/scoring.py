"""Hidden states + index -> log-probabilities: the way from a model to PairLogps that every plugin shares.

Logits are made only where a token is scored, and a bounded number of them at a time: where one chunk does not hold them
all, they are made again in the backward pass instead of being kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from orpo_exp.types import PairLogps, ScoreIndex, TokenLogps

# Numbers in the logits of one chunk: 2^24 float32 are 64 MiB.
CHUNK_NUMBERS = 2**24
# Numbers that the caches of a few cores hold: 2^19 float32 are 2 MiB.
CACHED_NUMBERS = 2**19

Head = Callable[[Tensor], Tensor]


class Vocabulary:
    """How the columns of the logits lie on the ranks: here all on one.

    columns: of each rank, the most there are; None: as many as the head makes. first: the token of this rank's first.
    """

    columns: int | None = None
    first: int = 0

    def most(self, numbers: Tensor) -> Tensor:
        """The largest of what the ranks have, element by element; no gradient passes. May change `numbers`."""
        return numbers

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of what the ranks have, element by element; no gradient passes. May change `numbers`."""
        return numbers

    def largest(self, logits: Tensor) -> Tensor:
        """(n, columns here) -> (n,) int64, the token with the largest logit; of equal ones the first."""
        return logits.argmax(1)


WHOLE = Vocabulary()


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
        logits = head(states).float()  # (chunk, vocabulary)
        if hasattr(logits.grad_fn, "_saved_result"):  # what made them wants them for its backward pass
            logits = logits.clone()
        logps, squares = _Picked.apply(logits, tokens, vocabulary, log_squared)
        return (logps, squares) if log_squared else (logps,)

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


class _Picked(torch.autograd.Function):
    """(n, columns here) logits, (n,) tokens -> (n,) log p(token), and (n,) log sum_v p(v)^2 if asked for.

    The logits are overwritten by exp(logit - largest here): the gradient, onehot - p, then takes one product more, no
    second softmax and no memory. All is done by rows that fit into the caches: a pass over memory costs more than an
    exp.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, vocabulary: Vocabulary, log_squared: bool
    ) -> tuple[Tensor, Tensor]:
        own, place = _own(logits, tokens, vocabulary)
        picked = logits.new_zeros(len(logits))
        picked[own] = logits[own, place]
        most = logits.new_full((len(logits),), -torch.inf)
        sums = logits.new_zeros(2 if log_squared else 1, len(logits))
        weights = logits.detach()
        for rows in _cached(logits):
            torch.amax(weights[rows], 1, out=most[rows])
            weights[rows].sub_(most[rows, None]).exp_()
            torch.sum(weights[rows], 1, out=sums[0, rows])
            if log_squared:
                torch.sum(weights[rows].square(), 1, out=sums[1, rows])
        # from the largest here to the largest of all ranks
        here, most = most, vocabulary.most(most.clone())
        scale = (here - most).exp()
        sums[0] *= scale
        sums[1:] *= scale**2
        sums, picked = vocabulary.total(torch.cat([sums, picked[None]])).split([len(sums), 1])
        ctx.save_for_backward(weights, tokens, scale / sums[0])
        ctx.vocabulary = vocabulary
        squares = sums[1].log() - 2 * sums[0].log() if log_squared else sums[0]
        ctx.mark_non_differentiable(squares)
        return picked[0] - most - sums[0].log(), squares

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        weights, tokens, share = ctx.saved_tensors  # a row's weights times its share are probabilities
        gradient = gradients[0]
        own, place = _own(weights, tokens, ctx.vocabulary)
        weights.mul_((-gradient * share)[:, None])
        weights[own, place] += gradient[own]
        return weights, None, None, None


def _own(logits: Tensor, tokens: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """The rows whose token is among this rank's columns, and the columns."""
    place = tokens - vocabulary.first
    own = ((place >= 0) & (place < logits.shape[1])).nonzero().squeeze(1)
    return own, place[own]


def _cached(logits: Tensor) -> Iterator[slice]:
    """Rows that fit into the caches together, all of them where there is no CPU; none where they have no column."""
    if not logits.numel():
        return
    rows = len(logits) if logits.is_cuda else max(1, CACHED_NUMBERS // logits.shape[1])
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)
