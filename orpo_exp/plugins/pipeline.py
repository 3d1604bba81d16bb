"""A pipeline whose micro-batches are the layout's own: of any length, and of any number."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from orpo_exp.plugins.colossal import colossalai_imported


@cache
def ragged_schedule() -> Any:
    """ColossalAI's one-forward-one-backward schedule, which wants one large batch to cut evenly, as one that takes a
    list of micro-batches."""
    with colossalai_imported():
        from colossalai.pipeline.schedule import OneForwardOneBackwardSchedule

    class Ragged(OneForwardOneBackwardSchedule):
        """Its data iterator gives one list: the micro-batches."""

        def load_batch(self, data_iter: Iterator[list[Any]], device: torch.device | None = None) -> None:
            self.micro_batches = iter(batches := next(data_iter))
            self.num_microbatches = len(batches)
            self.batch_size = self.microbatch_size = 1

        def load_micro_batch(self) -> Any:
            return next(self.micro_batches)

    return Ragged


def run_pipeline(
    scheduler: Any,
    wrapper: Any,
    micro_batches: Sequence[Mapping[str, Any]],
    at_the_end: Callable[[int], Tensor],
    optimizer: Any = None,
) -> None:
    """All micro-batches through all stages, with their backward passes where there is an optimizer.

    at_the_end: called on the last stage after the forward pass of each micro-batch; its loss, if there is an optimizer.
    """
    numbers = iter(range(len(micro_batches)))

    def criterion(output: Any, inputs: Any) -> Tensor:
        # the schedule divides by the number of micro-batches; what is given is to be summed
        return at_the_end(next(numbers)) * len(micro_batches)

    with wrapper._hook_context():
        scheduler.forward_backward_step(wrapper, iter([list(micro_batches)]), criterion, optimizer)
