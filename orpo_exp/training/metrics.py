"""From the shares of replicas and micro-batches to the numbers of the global batch; and how fast it goes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from orpo_exp.plugins import Plugin
from orpo_exp.types import Counts, LossOutput, TokenizedPair


def reduce_outputs(
    plugin: Plugin, outputs: Sequence[LossOutput], counts: Counts, stop: bool = False
) -> dict[str, float]:
    """Loss, terms and metrics of the global batch: sums of shares, and means over all of its pairs.

    `stop` rides along: the result's "stop" is above 0 where any replica wants to end.
    """
    first = outputs[0]
    sums = {
        "loss": sum(output.loss.detach() for output in outputs),
        **{name: sum(output.terms[name] for output in outputs) for name in first.terms},
        **{name: sum(output.per_pair[name].sum() / counts.pairs for output in outputs) for name in first.per_pair},
    }
    numbers = torch.stack(
        [torch.as_tensor(value, dtype=torch.float64).cpu() for value in [*sums.values(), float(stop)]]
    )
    return dict(zip([*sums, "stop"], plugin.sum(numbers).tolist(), strict=True))


class Speed:
    """Pairs and tokens per second of training, evaluation and saving not counted. Each prompt's tokens count once."""

    def __init__(self) -> None:
        self.pairs = self.tokens = 0
        self.seconds = 0.0
        self._mark = (time.perf_counter(), 0, 0)
        self._paused = 0.0

    def count(self, pairs: Sequence[TokenizedPair]) -> None:
        """Another global batch is done."""
        self.pairs += len(pairs)
        self.tokens += sum(pair.length for pair in pairs)

    def since_last(self) -> dict[str, float]:
        """Rates since the last call."""
        now = time.perf_counter()
        since, pairs, tokens = self._mark
        seconds = max(now - since - self._paused, 1e-9)
        self.seconds += seconds
        self._mark, self._paused = (now, self.pairs, self.tokens), 0.0
        return {
            "pairs_per_second": (self.pairs - pairs) / seconds,
            "tokens_per_second": (self.tokens - tokens) / seconds,
        }

    def overall(self) -> dict[str, float | None]:
        """Rates of the whole training; None before the first step."""
        if not self.seconds:
            return {"pairs_per_second": None, "tokens_per_second": None}
        return {"pairs_per_second": self.pairs / self.seconds, "tokens_per_second": self.tokens / self.seconds}

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs to tell the rates of the whole training."""
        _, pairs, tokens = self._mark  # up to which the seconds are counted
        return {"pairs": pairs, "tokens": tokens, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a `state_dict`; the clock starts now."""
        self.pairs, self.tokens, self.seconds = int(state["pairs"]), int(state["tokens"]), state["seconds"]
        self._mark = (time.perf_counter(), self.pairs, self.tokens)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of this block out."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start
