"""From logits to the log-probabilities of given tokens, and back to the gradient of the logits, in their own memory."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Numbers in the logits of one chunk: 2^24 float32 are 64 MiB.
CHUNK_NUMBERS = 2**24
# Numbers that the caches of a few cores hold: 2^19 float32 are 2 MiB.
CACHED_NUMBERS = 2**19


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


def picked(logits: Tensor, tokens: Tensor, vocabulary: Vocabulary, log_squared: bool) -> tuple[Tensor, ...]:
    """(n, columns here) logits, (n,) tokens -> (n,) log p(token), and (n,) log sum_v p(v)^2 if asked for.

    The logits are overwritten, in the backward pass by their gradient.
    """
    logps, squares = _Picked.apply(logits, tokens, vocabulary, log_squared)
    return (logps, squares) if log_squared else (logps,)


class _Picked(torch.autograd.Function):
    """What `picked` does."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, vocabulary: Vocabulary, log_squared: bool
    ) -> tuple[Tensor, Tensor]:
        weights = logits.detach()
        logps, squares, _, share = normalise(weights, tokens, vocabulary, log_squared)
        ctx.save_for_backward(weights, tokens, share)
        ctx.vocabulary = vocabulary
        ctx.mark_non_differentiable(squares)
        return logps, squares

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        weights, tokens, share = ctx.saved_tensors
        differentiate(weights, tokens, share, gradients[0], ctx.vocabulary)
        return weights, None, None, None


def overwritable(logits: Tensor) -> Tensor:
    """Logits in float32 that nothing else needs: neither what made them nor, later, its backward pass."""
    logits = logits.float()
    return logits.clone() if hasattr(logits.grad_fn, "_saved_result") else logits


def normalise(
    logits: Tensor, tokens: Tensor, vocabulary: Vocabulary, log_squared: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n, columns here) logits, in place, to exp(logit - largest here); four (n,) tensors of them.

    log p(token), log sum_v p(v)^2 (without `log_squared` nothing of use), the largest here, and the factor that makes
    probabilities. Each is in float32. The gradient, onehot - p, then takes one product more, no second softmax and no
    memory. All is done by rows that fit into the caches: a pass over memory costs more than an exp.
    """
    own, place = _own(logits, tokens, vocabulary)
    picked = logits.new_zeros(len(logits))
    picked[own] = logits[own, place]
    here = logits.new_full((len(logits),), -torch.inf)
    sums = logits.new_zeros(2 if log_squared else 1, len(logits))
    for rows in _cached(logits):
        torch.amax(logits[rows], 1, out=here[rows])
        logits[rows].sub_(here[rows, None]).exp_()
        torch.sum(logits[rows], 1, out=sums[0, rows])
        if log_squared:
            torch.sum(logits[rows].square(), 1, out=sums[1, rows])
    # from the largest here to the largest of all ranks
    most = vocabulary.most(here.clone())
    scale = (here - most).exp()
    sums[0] *= scale
    sums[1:] *= scale**2
    sums, picked = vocabulary.total(torch.cat([sums, picked[None]])).split([len(sums), 1])
    squares = sums[1].log() - 2 * sums[0].log() if log_squared else sums[0]
    return picked[0] - most - sums[0].log(), squares, here, scale / sums[0]


def differentiate(
    numbers: Tensor,
    tokens: Tensor,
    share: Tensor,
    gradient: Tensor,
    vocabulary: Vocabulary,
    largest: Tensor | None = None,
) -> None:
    """What `normalise` made of logits, in place, to the gradient of the logits, from that of log p(token), (n,).

    largest: what `normalise` gave, where the numbers are the logits made again.
    """
    own, place = _own(numbers, tokens, vocabulary)
    scale = (-gradient * share)[:, None]
    if largest is None:
        numbers.mul_(scale)
    else:
        for rows in _cached(numbers):
            numbers[rows].sub_(largest[rows, None]).exp_().mul_(scale[rows])
    numbers[own, place] += gradient[own]


def _own(logits: Tensor, tokens: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """The rows whose token is among this rank's columns, and the columns."""
    if vocabulary is WHOLE:  # all of them, and no device has to be waited for to say so
        return torch.arange(len(tokens), device=tokens.device), tokens
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
