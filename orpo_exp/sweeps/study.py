"""A search's trials: which values are tried next, from what the ones before came to. By Optuna, on disk.

Optuna's journal in the sweep's folder is the whole memory: any process, on any node that sees the folder, may ask for a
trial, and gets the same values for the same number. What a trial came to is found from its runs' folders and told by
whoever asks next. A trial that has failed is taken for as bad as the worst, but not told, for it may be run again.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_exp.files import locked
from orpo_exp.metrics import Direction
from orpo_exp.schema import ConfigError
from orpo_exp.sweeps.space import Axis

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

JOURNAL = "trials.jsonl"
LOCK = ".trials.lock"
SPREAD = 6  # trials that are spread over the whole space, before a model of them is worth anything
MOST_ASKED = 1000  # times, for values that were not tried yet

Values = tuple[str, ...]  # of a trial, as typed, one for each axis
# what a trial came to; nan where it failed; None where that is not known yet
Outcome = Callable[[Values], float | None]


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
                    return known[number]
                self._ask(study, outcome)
                known = self._reconciled(study, outcome)
        raise AssertionError("more trials than there are settings")

    def known(self, outcome: Outcome) -> list[Values]:
        """The values of each trial so far, in their order, the outcomes told that were not; none before the first."""
        if not (self.folder / JOURNAL).exists():
            return []
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

    def _ask(self, study: "optuna.Study", outcome: Outcome) -> None:
        distributions = {axis.name: axis.distribution for axis in self.axes}
        number = len(study.get_trials(deepcopy=False))
        if number < SPREAD:
            places = spread(len(self.axes))[number]
            study.enqueue_trial({axis.name: axis.at(of) for axis, of in zip(self.axes, places, strict=True)})
        else:
            study.enqueue_trial(self._chosen(study, outcome, distributions))
        try:
            study.ask(distributions)
        except ValueError as error:  # other choices, or a number where there was a word
            given = ", ".join(distributions)
            allowed = f"the keys and lists that this search was begun with ({error})"
            raise ConfigError("sweep.trials", given, allowed, "Give sweep.name=another.") from error

    def _chosen(
        self, study: "optuna.Study", outcome: Outcome, distributions: "dict[str, BaseDistribution]"
    ) -> dict[str, Any]:
        """Values that promise most, worked out beside the journal, where a failed trial has the worst value so far."""
        import optuna
        from optuna.trial import TrialState

        done, under_way = TrialState.COMPLETE, TrialState.RUNNING
        trials = study.get_trials(deepcopy=False, states=(done, under_way))
        values = {trial.number: trial.value for trial in trials if trial.state is done}
        if values:
            sign = 1 if self.direction is Direction.max else -1
            worst = min((value for value in values.values() if value is not None), key=lambda value: sign * value)
            untold = (trial for trial in trials if trial.state is under_way)
            failed = [trial.number for trial in untold if math.isnan(outcome(self._values(trial)) or 0.0)]
            values |= dict.fromkeys(failed, worst)
        beside = optuna.create_study(direction=study.direction, sampler=sampler(len(study.trials)))
        for trial in trials:
            if all(axis.holds(trial.params[axis.name]) for axis in self.axes):
                value = values.get(trial.number)
                state = under_way if value is None else done
                known = optuna.create_trial(state=state, params=trial.params, distributions=distributions, value=value)
                beside.add_trial(known)
        return beside.ask(distributions).params

    def _values(self, trial: "optuna.trial.FrozenTrial") -> Values:
        return tuple(axis.text(trial.params[axis.name]) for axis in self.axes)

    def _reconciled(self, study: "optuna.Study", outcome: Outcome) -> list[Values]:
        """The values of the trials that count; those that another one has tried before count as failed."""
        from optuna.trial import TrialState

        known: list[Values] = []
        names = {axis.name for axis in self.axes}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE)):
            if not trial.params.keys() <= names or (trial.state is TrialState.COMPLETE and trial.params.keys() < names):
                given, allowed = ", ".join(sorted(names)), f"{', '.join(trial.params)}: what this search was begun with"
                raise ConfigError("sweep.trials", given, allowed, "Give sweep.name=another.")
            if trial.params.keys() < names:  # killed while it was asked for
                study.tell(trial.number, state=TrialState.FAIL)
                continue
            values = self._values(trial)
            if values in known:
                study.tell(trial.number, state=TrialState.FAIL)
                continue
            known.append(values)
            value = outcome(values) if trial.state is TrialState.RUNNING else None
            if value is not None and not math.isnan(value):
                study.tell(trial.number, value)
        return known


def sampler(seed: int) -> "optuna.samplers.BaseSampler":
    """What chooses after the first trials: by a Gaussian process over all that is known, and at random as long as that
    is too little."""
    from optuna.samplers import GPSampler

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
    """Their mean; nan where one is, None where one is not known."""
    found = [value for value in values if value is not None]
    if any(map(math.isnan, found)):
        return math.nan
    return sum(found) / len(found) if len(found) == len(values) else None
