"""A request to stop, looked at between two steps."""

import signal
from contextlib import AbstractContextManager
from types import FrameType

from orpo_exp.plugins import Ranks
from orpo_exp.signals import handled


class Stopped(Exception):
    """The run was asked to stop; all that is worth keeping is on disk. number: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Waiting(Exception):
    """The run has come as far as it was told to, and saved; it is gone on with later."""


class StopRequest:
    """Set by a signal; nothing else happens in the handler. A second SIGINT leaves at once.

    signal: the number of the first one that came, 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0

    def agreed(self, ranks: Ranks) -> int:
        """The number of the signal by which any rank was asked to stop, the same on all; 0 for none."""
        return ranks.largest(self.signal)

    def listening(self) -> AbstractContextManager[None]:
        """Take over the signals for the time of the block."""
        return handled(self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
