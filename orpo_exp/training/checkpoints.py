"""Checkpoints: everything a run needs to go on bit for bit, written so that half of one is never taken for a whole.

checkpoints/step-00000200/manifest.json     what wrote it, and every other file's size and SHA-256
                          state.json        step, lambda schedule, latest evaluation, best metrics, speed
                          *.safetensors     what the plugin holds, and each rank's random number generators
checkpoints/latest                          a link to the newest one, moved last
checkpoints/model/                          the model's config.json and tokenizer, for an export
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from orpo_exp.losses import Loss
from orpo_exp.metrics import Direction
from orpo_exp.plugins import Plugin
from orpo_exp.schema import Refused
from orpo_exp.training.settings import TrainConfig

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, STATE, LATEST, MODEL = "manifest.json", "state.json", "latest", "model"
NAME = re.compile(r"step-(\d{8,})")


class NotSaved(RuntimeError):
    """A checkpoint that could not be written; those before it are untouched."""


class Damaged(Refused):
    """A checkpoint that is not whole."""


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay on disk.

    last: how many of the newest. best: how many of the best evaluations, by `metric`, of which `sign` * value is to be
    large.
    """

    last: int = 2
    best: int = 0
    metric: str = ""
    sign: float = 1.0

    @staticmethod
    def asked(train: TrainConfig, loss: Loss) -> "Keep":
        """Which checkpoints the settings keep."""
        good = train.best_direction or (loss.metrics[train.best_metric].good if train.keep_best else None)
        return Keep(train.keep_last, train.keep_best, train.best_metric, -1.0 if good is Direction.min else 1.0)


class Checkpoints:
    """The checkpoints of one run. Every method is called on all ranks.

    folder: checkpoints/ in the run's folder.
    about: what the manifest says of the run: its settings, versions, a fingerprint of its data.
    held: whether the held reference model belongs to the state, because it moves.
    describe: writes into a folder what an export needs beside the weights; called on the main rank.
    best: (step, value) of the best evaluations so far, the best first.
    """

    def __init__(
        self,
        folder: Path,
        plugin: Plugin,
        about: Mapping[str, Any],
        keep: Keep,
        held: bool,
        describe: Callable[[Path], None],
    ) -> None:
        self.folder, self.plugin, self.about, self.keep, self.held = folder, plugin, about, keep, held
        self.describe = describe
        self.best: list[tuple[int, float]] = []
        if plugin.ranks.is_main:
            for left in folder.glob(".step-*"):  # by a kill in the middle of saving or removing
                shutil.rmtree(left, ignore_errors=True)

    def note(self, step: int, evaluation: Mapping[str, float]) -> bool:
        """Whether this step's evaluation is among the best so far, and its checkpoint to be kept. The earlier wins."""
        if not self.keep.best or not math.isfinite(value := evaluation[self.keep.metric]):
            return False
        ranked = sorted([*self.best, (step, value)], key=lambda entry: (-self.keep.sign * entry[1], entry[0]))
        self.best = ranked[: self.keep.best]
        return (step, value) in self.best

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step beside its place, move it there, then let go of what need not be kept.

        Raises NotSaved on all ranks where one of them could not write.
        """
        beside, place = self.folder / f".step-{step:08d}.partial", self.folder / f"step-{step:08d}"
        main = self.plugin.ranks.is_main

        def write_own() -> dict[str, Any]:
            return {name: fingerprint(beside / name) for name in self.plugin.save(beside, self.held)}

        def put_in_place() -> None:
            whole = {**state, "best": self.best, "best_by": self._best_by}
            files = {**written, STATE: write_json(beside / STATE, whole)}
            write_json(beside / MANIFEST, {"format": FORMAT, "step": step, **self.about, "files": files})
            replace_folder(beside, place)
            if not (self.folder / MODEL).exists():
                self.describe(self.folder / MODEL)

        try:
            self._together(lambda: beside.mkdir(parents=True) if main else None)
            written = {name: of for own in self._together(write_own) for name, of in own.items()}
            self._together(lambda: put_in_place() if main else None)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)  # a full disk has the room back
            raise NotSaved(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}. "
                f"The one before it is intact. Make room (or lower train.keep_last) and go on from there."
            ) from error
        if main:
            self._tidy(step, place)

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Give the plugin its part of a checkpoint that was found whole; the rest of the state."""
        self.plugin.load(checkpoint, self.held)
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        best, by = state.pop("best"), state.pop("best_by", self._best_by)  # the first checkpoints did not say it
        if by == self._best_by:  # values of another metric say nothing of this one
            self.best = [(int(step), float(value)) for step, value in best][: self.keep.best]
        return state

    def _together(self, work: Callable[[], Any]) -> list[Any]:
        return self.plugin.ranks.together(work, OSError, SafetensorError)

    @property
    def _best_by(self) -> list[Any]:
        return [self.keep.metric, self.keep.sign]

    def _tidy(self, step: int, place: Path) -> None:
        """Point `latest` to the checkpoint of this step; remove those up to it that are neither among the newest nor
        the best. The checkpoint is whole: what fails here ends no run."""
        try:
            beside, latest = self.folder / f".{LATEST}.partial", self.folder / LATEST
            beside.unlink(missing_ok=True)
            beside.symlink_to(place.name)
            if latest.is_dir() and not latest.is_symlink():  # some ways to copy a run make a folder of it
                shutil.rmtree(latest)
            beside.replace(latest)
            steps = [number for number, _ in listed_checkpoints(self.folder) if number <= step]
            kept = {*steps[-self.keep.last :], *(number for number, _ in self.best)}
            for number in steps:
                if number not in kept:
                    remove_folder(self.folder / f"step-{number:08d}")
        except OSError as error:
            log.warning("%s is not as it should be, but its checkpoints are whole: %s", self.folder, error)


def listed_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of what stands in checkpoints/, whole or not, in the order of their steps."""
    found = [(match, path) for path in folder.glob("step-*") if (match := NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def newest_valid(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its manifest; None where there never was one. A damaged one is named, and the one
    before it taken.

    Raises Refused where there are only damaged ones.
    """
    listed = listed_checkpoints(folder)
    for _, path in reversed(listed):
        try:
            return path, verify(path)
        except Damaged as error:
            log.warning("%s", error)
    if listed:
        raise Refused(
            f"none of the {len(listed)} checkpoints in {folder} is whole. Remove that folder to start this run anew."
        )
    return None


def verify(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, every file compared with it. Raises Damaged."""
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            if Path(name).name != name or fingerprint(checkpoint / name, sync=False) != expected:
                raise Damaged(f"the checkpoint {checkpoint} is damaged: {name} is not what was written")
        if manifest["format"] != FORMAT:
            raise Refused(
                f"the checkpoint {checkpoint} has format {manifest['format']}; this version reads {FORMAT}. "
                f"Go on with the version that wrote it: {manifest.get('versions', {}).get('orpo-exp')}."
            )
        if missing := {"step", "settings", "versions", "plugin", "data"} - manifest.keys():
            raise Damaged(f"the checkpoint {checkpoint} is damaged: its manifest lacks {', '.join(sorted(missing))}")
    except Refused:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"the checkpoint {checkpoint} is damaged: {type(error).__name__}: {error}") from error
    return manifest


def fingerprint(path: Path, sync: bool = True) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, which is on disk for good first unless `sync` is false."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def write_json(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a JSON file for good; its fingerprint."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return fingerprint(path)


def replace_folder(beside: Path, place: Path) -> None:
    """Move a folder to its place in one step; what stood there before, a checkpoint that was not taken, is removed."""
    if place.exists():
        remove_folder(place)
    beside.rename(place)
    descriptor = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the renaming itself
    finally:
        os.close(descriptor)


def remove_folder(place: Path) -> None:
    """Remove a checkpoint. It loses its name first: no one sees half of it."""
    going = place.with_name(f".{place.name}.removed")
    shutil.rmtree(going, ignore_errors=True)
    place.rename(going)
    shutil.rmtree(going)
