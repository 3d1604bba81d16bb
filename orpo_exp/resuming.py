"""What a run finds in its folder, and where it goes on: nothing yet, a completed run, or one to be resumed."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from orpo_exp.run_folder import RunOrder, slurm_job_id
from orpo_exp.schema import ConfigError, flat
from orpo_exp.sweeps.states import alive, read_result, slurm_queue
from orpo_exp.training.checkpoints import MANIFEST, newest_valid, verify

log = logging.getLogger(__name__)

AUTO, NEVER = "auto", "never"


def has_work(order: RunOrder) -> bool:
    """Whether there is anything left to run in the order's folder; not where this very run has completed there.

    Raises ConfigError where the folder holds another run, one that is still running, or any where `resume=never`.
    """
    given = order.config.resume
    if given not in (AUTO, NEVER) and not given_checkpoints(Path(given)):
        raise ConfigError(
            "resume", given, "auto, never, a run's folder or one of its checkpoints", "Look for checkpoints/step-*."
        )
    result = read_result(order.folder)
    if result is None:
        return True
    where = str(order.folder)
    if given == NEVER:
        allowed = "a folder without a run in it, because of resume=never"
        raise ConfigError("hydra.run.dir", where, allowed, "Choose another, or move that run away.")
    again = result.get("job_id") is not None and result["job_id"] == slurm_job_id(os.environ)  # Slurm starts it again
    if result["status"] == "running" and not again and alive(result, slurm_queue()):
        running = f"it is running on {result.get('host')} as process {result.get('pid')}"
        raise ConfigError(
            "hydra.run.dir", where, f"a folder whose run has ended; {running}", "Wait for it, or stop it."
        )
    config = order.folder / "config.yaml"
    if not config.exists():
        allowed = "the folder of a run, with its config.yaml, or a new one"
        raise ConfigError("hydra.run.dir", where, allowed, "Choose another.")
    if changed := differences(OmegaConf.to_container(OmegaConf.load(config)), order):
        allowed = f"the settings that the run in it began with; different are {', '.join(changed)}"
        raise ConfigError("hydra.run.dir", where, allowed, "Give the same settings, or another folder.")
    return bool(result["status"] != "completed")


def find_checkpoint(order: RunOrder, about: Mapping[str, Any]) -> tuple[str | None, int]:
    """Where the run goes on: the newest whole checkpoint of its own, or the one it was given, and its step; None and 0
    at the beginning. `about`: what a manifest written now would say.

    A run that was given another's checkpoint and has saved some itself since goes on from its own.
    Raises ValueError for a checkpoint that is damaged, or of a run with other settings, data or plugin.
    """
    own, given = order.folder / "checkpoints", order.config.resume
    found = newest_valid(own)
    if given not in (AUTO, NEVER) and (found is None or Path(given).resolve().is_relative_to(own.resolve())):
        path = Path(given).resolve()
        found = newest_valid(path / "checkpoints") if (path / "checkpoints").is_dir() else (path, verify(path))
    if found is None:
        return None, 0
    checkpoint, manifest = found
    changed = differences(manifest["settings"], order)
    changed += [f"the {key}" for key in ("plugin", "data") if manifest[key] != about[key]]
    if changed:
        raise ValueError(
            f"the checkpoint {checkpoint} cannot be gone on from, for these are others now: {', '.join(changed)}. "
            f"Give the same ones, or start anew in another folder."
        )
    if manifest["world_size"] != about["world_size"]:
        ranks = f"{manifest['world_size']} ranks, now {about['world_size']}"
        log.warning("the checkpoint is of %s: the curve goes on the same up to rounding, not bit for bit", ranks)
    if manifest["versions"] != about["versions"]:
        then = ", ".join(f"{k} {v}" for k, v in manifest["versions"].items() if about["versions"].get(k) != v)
        log.warning("the checkpoint was written with %s: the curve may go on other than bit for bit", then)
    return str(checkpoint), manifest["step"]


def given_checkpoints(path: Path) -> bool:
    """Whether a path is a checkpoint, or a run's folder with some."""
    return (path / MANIFEST).is_file() or any((path / "checkpoints").glob("step-*"))


def differences(former: Any, order: RunOrder) -> list[str]:
    """The settings that can change a number and are not what they were, each with both values."""
    was, now = flat(former), flat(order.config.numeric())
    absent = object()
    return [
        f"{key} (was {was.get(key, 'not there')}, is now {value})"
        for key, value in now.items()
        if was.get(key, absent) != value
    ]
