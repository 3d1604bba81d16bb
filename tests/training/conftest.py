import pytest

from orpo_exp import experiment


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr(experiment, "draw_plots", lambda folder: None)
