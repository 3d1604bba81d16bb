"""What a sweep's points are started by: turns, in stages."""

from collections.abc import Sequence
from dataclasses import dataclass

from orpo_exp.runs.order import RunOrder


@dataclass(frozen=True)
class Turn:
    """A place in a sweep's order of events. like: what is run in it or, where that is found out only when its turn has
    come, a run with the same needs."""

    like: RunOrder

    @property
    def point(self) -> str | None:
        """The folder's name of the point that it runs, where that is known before its turn has come."""
        return self.like.folder.name

    @property
    def name(self) -> str:
        """What it is called among the sweep's turns."""
        return self.like.folder.name

    def order(self) -> RunOrder | None:
        """What is to be run, now that its turn has come, the same for all who ask; None: nothing any more."""
        return self.like

    def ended(self) -> None:
        """Note what its run has come to, now that it has ended."""


# The turns of one stage may be taken side by side, in their order; a stage begins when the one before has ended.
Stages = Sequence[Sequence[Turn]]
