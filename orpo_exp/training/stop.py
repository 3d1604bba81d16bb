"""A request to stop, looked at between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orpo_exp.plugins.processes import STOP_SIGNALS


class StopRequest:
    """Set by a signal; nothing else happens in the handler. A second SIGINT leaves at once.

    signal: the number of the first one that came, 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals for the time of the block."""
        former = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
