"""The signals that end a run, handled for a while and then as before."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C; what `kill`, Slurm's scancel and preemption send; what is asked of Slurm as a warning before the time is up; a
# terminal that closes
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Give them a handler for the time of the block. An ignored SIGHUP stays so: nohup asks for that."""
    former = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if former[signal.SIGHUP] == signal.SIG_IGN:
        del former[signal.SIGHUP]
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
