"""A search's trials: which values are tried next, from what the ones before came to. By Optuna, on disk.

Optuna's journal in the sweep's folder is the whole memory: any process, on any node that sees the folder, may ask for a
trial, and gets the same values for the same number. What a trial came to is found from its runs' folders and told by
whoever asks next. A trial that has failed, or is run just now, is taken for one that came to nothing good.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from orpo_exp.files import locked
from orpo_exp.metrics import Direction
from orpo_exp.schema import ConfigError
from orpo_exp.sweeps.space import Axis

if TYPE_CHECKING:
    import optuna

JOURNAL = "trials.jsonl"
LOCK = ".trials.lock"
SPREAD = 6  # trials that are spread over the whole space, before a model of them is worth anything
MOST_ASKED = 1000  # times, for values that were not tried yet

Values = tuple[str, ...]  # of a trial, as typed, one for each axis
Outcome = Callable[[Values], float | None]  # what a trial came to; None where that is not known (yet)


@dataclass(frozen=True)
class Study:
    """folder: where the journal lies. metric: what is told of a trial; direction: its good end."""

    folder: Path
    axes: tuple[Axis, ...]
    metric: str
    direction: Direction

    def trial(self, number: int, outcome: Outcome) -> Values:
        """The values of a trial, counted from 0: chosen now, if they were not before, from what all trials that have an
        outcome came to. Raises ConfigError for a journal of another search."""
        with locked(self.folder / LOCK):
            study = self._study()
            known = self._reconciled(study, outcome)
            for _ in range(MOST_ASKED):
                if len(known) > number:
                    return list(known.values())[number]
                self._ask(study, len(known))
                known = self._reconciled(study, outcome)
        raise AssertionError("more trials than there are settings")

    def known(self, outcome: Outcome) -> dict[int, Values]:
        """The values of each trial so far by Optuna's number, in their order, the outcomes told that were not; nothing
        before the first."""
        if not (self.folder / JOURNAL).exists():
            return {}
        with locked(self.folder / LOCK):
            return self._reconciled(self._study(), outcome)

    def _study(self) -> "optuna.Study":
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
        from optuna.study import StudyDirection

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.folder / JOURNAL
        without_torn_line(path)
        storage = JournalStorage(JournalFileBackend(str(path)))
        name = json.dumps([self.metric, self.direction.value])
        found = [of.study_name for of in storage.get_all_studies()]
        if found and found != [name]:
            metric, direction = json.loads(found[0])
            allowed = f"{metric}, {direction}: what this search was begun with"
            raise ConfigError("sweep.metric", f"{self.metric}, {self.direction}", allowed, "Give sweep.name=another.")
        good = StudyDirection.MAXIMIZE if self.direction is Direction.max else StudyDirection.MINIMIZE
        return optuna.create_study(storage=storage, study_name=name, direction=good, load_if_exists=True)

    def _ask(self, study: "optuna.Study", number: int) -> None:
        study.sampler = sampler(len(study.trials))
        if number < SPREAD and len(study.trials) == number:
            places = spread(len(self.axes))[number]
            study.enqueue_trial({axis.name: axis.at(of) for axis, of in zip(self.axes, places, strict=True)})
        try:
            study.ask({axis.name: axis.distribution for axis in self.axes})
        except ValueError as error:  # other choices, or a number where there was a word
            given = ", ".join(axis.name for axis in self.axes)
            allowed = f"the keys and lists that this search was begun with ({error})"
            raise ConfigError("sweep.trials", given, allowed, "Give sweep.name=another.") from error

    def _reconciled(self, study: "optuna.Study", outcome: Outcome) -> dict[int, Values]:
        """The trials that count. Of several with the same values only the first does, the others are told as failed."""
        from optuna.trial import TrialState

        known: dict[int, Values] = {}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE)):
            if not trial.params.keys() >= {axis.name for axis in self.axes}:  # killed while it was asked for
                study.tell(trial.number, state=TrialState.FAIL)
                continue
            values = tuple(axis.text(trial.params[axis.name]) for axis in self.axes)
            if values in known.values():
                study.tell(trial.number, state=TrialState.FAIL)
                continue
            known[trial.number] = values
            if trial.state is TrialState.RUNNING and (value := outcome(values)) is not None:
                study.tell(trial.number, value)
        return known


def sampler(seed: int) -> "optuna.samplers.BaseSampler":
    """What chooses after the first trials: by a Gaussian process over all that is known, and at random as long as that
    is too little."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import GPSampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return GPSampler(seed=seed, n_startup_trials=SPREAD)


@cache
def spread(axes: int) -> list[list[float]]:
    """Places from 0 to 1 on each of so many axes, evenly spread over the space (Sobol)."""
    from scipy.stats import qmc

    places: list[list[float]] = qmc.Sobol(axes, rng=0).random_base2(3)[:SPREAD].tolist()
    return places


def without_torn_line(path: Path) -> None:
    """Leave out the end of a journal that a kill or a full disk has cut short."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def mean_of(values: Sequence[float | None]) -> float | None:
    """Their mean, None where one is not known."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if len(found) == len(values) else None
