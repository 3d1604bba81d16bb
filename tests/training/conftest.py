from collections.abc import Callable

import pytest

from orpo_exp import experiment
from orpo_exp.training import Loop


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr(experiment, "draw_plots", lambda folder: None)


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on a run dies in the middle of a step; of step 0: no longer."""
    train_step = Loop.train_step

    def at(step: int) -> None:
        def dying(self):
            if self.step == step:
                raise RuntimeError("cut off")
            return train_step(self)

        monkeypatch.setattr(Loop, "train_step", dying)

    return at
