"""Several data sets as one."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial

import torch
from torch import Tensor
from typing_extensions import override

from orpo_exp.data.base import DATA, DataConfig, FiniteConfig, Source, SourceData
from orpo_exp.data.files import FileConfig, Files
from orpo_exp.data.split import Draw, Part, Parts, divided, undivided
from orpo_exp.schema import ConfigError, setting


@DATA.register("mix")
class Mix(Source):
    """Several sources, in proportions if wanted. What is held out is held out of all of them together: no prompt of one
    is trained on that is tested in another."""

    @dataclass
    class Config(FiniteConfig):
        """sources: by name. weights: of all of them, or none. repeat: whether, to keep to these, an epoch has pairs of
        small sources more than once, or leaves pairs of large ones out."""

        sources: dict[str, DataConfig] = field(default_factory=dict)
        weights: dict[str, float] = field(default_factory=dict)
        repeat: bool = setting(False)

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.sources:
                raise ConfigError("sources", {}, "one or more", "Add +data@data.sources.mine=json, for example.")
            for name, source in self.sources.items():
                self._check(name, source)
            if self.weights and self.weights.keys() != self.sources.keys():
                allowed = f"none, or one for each of {', '.join(self.sources)}"
                raise ConfigError("weights", dict(self.weights), allowed, "Say what is missing, or remove the rest.")
            if wrong := {name: weight for name, weight in self.weights.items() if not 0 < weight < float("inf")}:
                raise ConfigError("weights", wrong, "numbers above 0", "Leave out a source that is not to be used.")
            if self.repeat and not self.weights:
                raise ConfigError("repeat", True, "false without weights", "Give weights, or leave it out.")

        def _check(self, name: str, source: DataConfig) -> None:
            """What is said for the whole may not be said for a part of it."""
            if not isinstance(source, FileConfig):
                raise ConfigError(f"sources.{name}", name, "json, hub, or a data set that builds on them", "Name one.")
            for of in fields(FiniteConfig):
                given = getattr(source, of.name)
                if given != of.default and given != getattr(self, of.name):
                    allowed = f"as in the mix: {getattr(self, of.name)}"
                    do = f"Set data.{of.name}, which is that of all sources."
                    raise ConfigError(f"sources.{name}.{of.name}", given, allowed, do)

    config: Config

    @override
    def load(self, seed: int) -> SourceData:
        c, seed = self.config, self.config.split_by(seed)
        parts = self._parts(seed)
        if c.test_size is not None and parts.test:
            allowed = "null where a source names its own test data"
            raise ConfigError("data.test_size", c.test_size, allowed, "Leave one of them out.")
        draw: Draw = torch.cat
        if c.weights:
            draw = partial(drawn, weights=[c.weights[name] for name in c.sources], repeat=c.repeat, seed=seed)
        return divided(parts, c, seed, draw)

    @override
    def whole(self, seed: int) -> SourceData:
        return undivided(self._parts(self.config.split_by(seed)))

    def _parts(self, seed: int) -> Parts:
        c = self.config
        train: list[Part] = []
        evaluation: list[Part] = []
        test: list[Part] = []
        for name, config in c.sources.items():
            assert isinstance(config, FileConfig)
            source = DATA.build(replace(config, cache=c.cache))
            assert isinstance(source, Files)
            try:
                parts = source.parts(seed)
            except ConfigError as error:
                key = f"data.sources.{name}.{error.key.removeprefix('data.')}"
                raise ConfigError(key, error.given, error.allowed, error.do) from None
            for into, found in ((train, parts.train), (evaluation, parts.evaluation), (test, parts.test)):
                for part in found:
                    into.append(part.among(name, sum(before.rows for before in into)))
        return Parts(train, evaluation, test)


def drawn(of_sources: Sequence[Tensor], weights: Sequence[float], repeat: bool, seed: int) -> Tensor:
    """The pairs of an epoch: of each source a share by its weight. of_sources: (pairs,) int64 each, their places.

    As many as there are without a pair twice; with `repeat` as many as it takes to have every pair, the pairs of a
    source as often as each other, but for one time. Which are left out, or had once more, the seed decides.
    """
    if not all(map(len, of_sources)):
        allowed = "weights of sources that have pairs to train on"
        raise ConfigError("data.weights", list(weights), allowed, "One of them has none that is not held out.")
    least_or_most = max if repeat else min
    scale = least_or_most(len(places) / weight for places, weight in zip(of_sources, weights, strict=True))
    chosen: list[Tensor] = []
    for number, (places, weight) in enumerate(zip(of_sources, weights, strict=True)):
        times, more = divmod(max(1, round(scale * weight)), len(places))
        some = sorted(random.Random(f"{seed} {number}").sample(range(len(places)), more))
        chosen += [places] * times + [places[torch.tensor(some, dtype=torch.int64)]]
    return torch.cat(chosen)
