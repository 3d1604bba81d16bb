"""Checkpoints in folders named as ColossalChat's, from which a training goes on bit for bit.

save_dir/epoch-0_step-500/
  modeling/              the weights, as Hugging Face's libraries and Booster.load_model load them
  training/              a checkpoint as training/checkpoints.py writes it
  running_states.json    epoch, batches of it, and samples of it that each rank has seen
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_exp.colossalchat.batches import Stream
from orpo_exp.plugins import Plugin
from orpo_exp.runs.folder import package_versions
from orpo_exp.training.checkpoints import Checkpoints, Keep, NotSaved, newest_valid, replace_folder

MODEL, TRAINING, STATES = "modeling", "training", "running_states.json"


class EpochFolders:
    """Where a trainer saves. A folder appears when it is whole; none is removed."""

    def __init__(self, folder: Path, plugin: Plugin, settings: Mapping[str, Any], tokenizer: Any) -> None:
        self.folder, self.plugin, self.settings, self.tokenizer = folder, plugin, settings, tokenizer
        self.stream: Stream | None = None

    def note(self, step: int, evaluation: Mapping[str, float]) -> bool:
        """None is saved for being good."""
        return False

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Called on all ranks. Raises NotSaved."""
        assert self.stream is not None
        epoch, batches = self.stream.epoch(step), self.stream.batches_done(step)
        seen = {"epoch": epoch, "step": batches, "sample_start_index": batches * self.stream.batch_size}
        place = self.folder / f"epoch-{epoch}_step-{batches}"
        beside = place.with_name(f".{place.name}.partial")
        ranks = self.plugin.ranks

        def begin() -> None:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)

        def put_in_place() -> None:
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(beside / MODEL)
            (beside / STATES).write_text(json.dumps(seen, indent=4), encoding="utf-8")
            replace_folder(beside, place)

        try:
            ranks.together(lambda: begin() if ranks.is_main else None, OSError)
            self._checkpoints(beside).save(step, state)
            self.plugin.save_weights(beside / MODEL)
            ranks.together(lambda: put_in_place() if ranks.is_main else None, OSError)
        except OSError as error:
            raise NotSaved(f"{place} could not be written: {error}. Those before it are intact.") from error

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Give the plugin what lies in a folder `epoch-.._step-..`; the loop's state.

        Raises ValueError where there is no checkpoint in it, or one of another plugin or loss.
        """
        found = newest_valid(checkpoint / TRAINING)
        if found is None:
            raise ValueError(
                f"{checkpoint} holds no checkpoint of this trainer; give one of its folders epoch-.._step-.."
            )
        path, manifest = found
        for key in ("plugin", "settings", "data"):
            if manifest[key] != self._about[key]:
                given = f"was written with {key} {manifest[key]}; this trainer has {self._about[key]}"
                raise ValueError(f"{checkpoint} {given}. Make them the same.")
        return self._checkpoints(checkpoint).load(path)

    @property
    def _about(self) -> dict[str, Any]:
        assert self.stream is not None
        return {
            "plugin": self.plugin.checkpoint_form,
            "settings": self.settings,
            "data": {"batches": self.stream.batches_per_epoch, "batch_size": self.stream.batch_size},
            "versions": package_versions(),
        }

    def _checkpoints(self, folder: Path) -> Checkpoints:
        return Checkpoints(
            folder / TRAINING, self.plugin, self._about, Keep(), held=False, describe=lambda folder: None
        )
