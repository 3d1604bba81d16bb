"""From the shares of replicas and micro-batches to the numbers of the global batch; and how fast it goes."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from orpo_exp.plugins import Ranks
from orpo_exp.training.objectives import gather_rows
from orpo_exp.types import Counts, LossOutput, TokenizedPair


class TrainingDiverged(RuntimeError):
    """A loss or gradient that is not finite; the weights are those before the step."""


def reduce_outputs(ranks: Ranks, outputs: Sequence[LossOutput], counts: Counts) -> dict[str, float]:
    """Loss, terms and metrics of the global batch: sums of shares, and means over all of its pairs."""
    first = outputs[0]
    sums = {
        "loss": sum(output.loss.detach() for output in outputs),
        **{name: sum(output.terms[name] for output in outputs) for name in first.terms},
        **{name: sum(output.per_pair[name].sum() / counts.pairs for output in outputs) for name in first.per_pair},
    }
    numbers = torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in sums.values()])
    return dict(zip(sums, ranks.sum(numbers).tolist(), strict=True))


def refuse_non_finite(
    step: int, metrics: Mapping[str, float], ranks: Ranks, outputs: Sequence[LossOutput], pairs: Sequence[TokenizedPair]
) -> None:
    """Raise TrainingDiverged, naming step, terms and pairs, where a metric is not finite; the same on all ranks.

    pairs: this replica's, in the order of `outputs`.
    """
    bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if not bad:
        return
    per_pair = [torch.cat([output.per_pair[name] for output in outputs]) for name in outputs[0].per_pair]
    told = [values for values in per_pair if len(values) == len(pairs)]
    broken = [pair for i, pair in enumerate(pairs) if not all(math.isfinite(values[i]) for values in told)]
    # where only the gradient is broken, any pair of the batch may be why
    rows = gather_rows(ranks, broken).tolist() or gather_rows(ranks, pairs).tolist()
    shown = ", ".join(map(str, sorted(rows)[:20])) + (", ..." if len(rows) > 20 else "")
    terms = ", ".join(f"{name} = {value}" for name, value in bad.items())
    raise TrainingDiverged(
        f"step {step} is not finite: {terms}; pairs (rows of the data): {shown}. "
        f"The weights were not updated. Look at these rows, lower optimizer.lr, or set train.max_grad_norm."
    )


class Speed:
    """Pairs and tokens per second of training: what is counted and how long it took are always of the same steps.

    Its clock runs inside `running` alone, evaluation and saving left out. Each prompt's tokens count once.
    """

    def __init__(self) -> None:
        self.pairs = self.tokens = 0
        self._seconds = 0.0  # up to when the clock was last stopped
        self._since: float | None = None  # when it was last started
        self._mark = (0, 0, 0.0)

    @property
    def seconds(self) -> float:
        """How long the clock has run."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def running(self, on: bool = True) -> Iterator[None]:
        """Train inside this block; off, the clock stands still in it."""
        before = self._since is not None
        self._switch(on)
        try:
            yield
        finally:
            self._switch(before)

    def paused(self) -> AbstractContextManager[None]:
        """Leave the time of this block out."""
        return self.running(False)

    def count(self, pairs: Sequence[TokenizedPair]) -> None:
        """Another global batch is done."""
        self.pairs += len(pairs)
        self.tokens += sum(pair.length for pair in pairs)

    def since_last(self) -> dict[str, float]:
        """Rates since the last call."""
        pairs, tokens, seconds = self._mark
        self._mark = (self.pairs, self.tokens, self.seconds)
        took = max(self._mark[2] - seconds, 1e-9)
        return {"pairs_per_second": (self.pairs - pairs) / took, "tokens_per_second": (self.tokens - tokens) / took}

    def overall(self) -> dict[str, float | None]:
        """Rates of the whole training; None before the first step."""
        if not self.pairs:
            return {"pairs_per_second": None, "tokens_per_second": None}
        return {"pairs_per_second": self.pairs / self.seconds, "tokens_per_second": self.tokens / self.seconds}

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs to tell the rates of the whole training."""
        return {"pairs": self.pairs, "tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a `state_dict`."""
        self.pairs, self.tokens, self._seconds = int(state["pairs"]), int(state["tokens"]), state["seconds"]
        self._mark = (self.pairs, self.tokens, self._seconds)

    def _switch(self, on: bool) -> None:
        self._seconds, self._since = self.seconds, time.perf_counter() if on else None
