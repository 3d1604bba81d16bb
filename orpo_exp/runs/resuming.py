"""What a run finds in its folder, and where it goes on: nothing yet, a completed run, or one to be resumed."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from orpo_exp.config import SPLIT, RunConfig, resolved
from orpo_exp.data.tokenize import TokenizedData
from orpo_exp.plugins import Plugin
from orpo_exp.runs.folder import package_versions
from orpo_exp.runs.order import AUTO, NEVER, RunOrder
from orpo_exp.runs.states import alive, read_result, requeued_from, slurm_queue
from orpo_exp.schema import ConfigError, Refused, flat
from orpo_exp.training.checkpoints import MANIFEST, listed_checkpoints, newest_valid, verify
from orpo_exp.training.layout import Used

log = logging.getLogger(__name__)

# what a manifest says of its run that must be so still, beside the settings
SAME = {"plugin": "the plugin", "data": "the data", "model": "the starting model (what its source holds)"}


def has_work(order: RunOrder) -> bool:
    """Whether there is anything left to run in the order's folder; not where this very run has completed there.

    Raises ConfigError where the folder holds another run, one that is still running, or any where `resume=never`.
    """
    given, where = order.config.resume, str(order.folder)
    if given not in (AUTO, NEVER):
        refuse_unusable(Path(given), order.folder)
    result = read_result(order.folder)
    if result is None:
        return True
    if given == NEVER and not requeued_from(result):
        allowed = "a folder without a run in it, because of resume=never"
        raise ConfigError("hydra.run.dir", where, allowed, "Choose another, or move that run away.")
    if result["status"] == "running" and alive(result, slurm_queue()):
        running = f"it is running on {result.get('host')} as process {result.get('pid')}"
        allowed = f"a folder whose run has ended; {running}"
        raise ConfigError("hydra.run.dir", where, allowed, "Wait for it, or stop it.")
    if result.get("config_hash") != order.config.config_hash:
        refuse_changed(order)
    return bool(result["status"] != "completed")


def find_checkpoint(order: RunOrder) -> tuple[str, dict[str, Any]] | None:
    """Where the run goes on: the newest whole checkpoint of its own, or the one it was given, and its manifest; None at
    the beginning.

    A run that was given another's checkpoint and has saved some itself since goes on from its own.
    Raises Refused for a checkpoint that is damaged.
    """
    given = order.config.resume
    found = newest_valid(order.folder / "checkpoints")
    if found is None and given not in (AUTO, NEVER):
        path = Path(given).resolve()
        found = newest_valid(path / "checkpoints") if (path / "checkpoints").is_dir() else (path, verify(path))
    return None if found is None else (str(found[0]), found[1])


def manifest(config: RunConfig, plugin: Plugin, used: Used, pairs: TokenizedData, model_digest: str) -> dict[str, Any]:
    """What a checkpoint says of its run: what must be the same where another one goes on from it, and how the work was
    split, which need not."""
    whole = resolved(config)
    split = {
        "ranks": plugin.ranks.world_size,
        "micro_batch_size": config.train.micro_batch_size,
        "micro_batch_tokens": config.train.micro_batch_tokens,
        **used.record(),
        **{group: config.choices.get(group) for group in SPLIT},
        **{f"{group}.{key}": value for group in SPLIT for key, value in whole[group].items()},
    }
    return {
        "plugin": plugin.checkpoint_form,
        "split": split,
        "versions": package_versions(),
        "settings": config.numeric(),
        "data": pairs.fingerprint(),
        "model": model_digest,
    }


def check_checkpoint(order: RunOrder, checkpoint: str, manifest: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of a run with other settings, data or another starting model; warn where the curve may go on
    other than bit for bit. `about`: what a manifest written now would say."""
    changed = differences(manifest["settings"], order)
    # the first checkpoints did not say of which model they are
    changed += [what for key, what in SAME.items() if manifest.get(key, about[key]) != about[key]]
    if changed:
        raise Refused(
            f"the checkpoint {checkpoint} cannot be gone on from, for these are others now: {', '.join(changed)}. "
            f"Give the same ones, or start anew in another folder."
        )
    split, former = about["split"], manifest.get("split", {"ranks": manifest.get("world_size")})
    if other := [f"{key} {value}, now {split.get(key)}" for key, value in former.items() if value != split.get(key)]:
        how = "the curve goes on the same up to rounding, not bit for bit"
        log.warning("the checkpoint is of another split of the work (%s): %s", ", ".join(other), how)
    if manifest["versions"] != about["versions"]:
        then = ", ".join(f"{k} {v}" for k, v in manifest["versions"].items() if about["versions"].get(k) != v)
        log.warning("the checkpoint was written with %s: the curve may go on other than bit for bit", then)


def refuse_unusable(given: Path, folder: Path) -> None:
    """Refuse with ConfigError a `resume` that is no checkpoint and no run with some, or that is the run's own. One that
    the run has long gone on from need not be there any more."""
    own = folder.resolve()
    if given.resolve() == own or given.resolve().is_relative_to(own / "checkpoints"):
        do = "To go back, begin in a new folder with hydra.run.dir; to go on, leave resume out."
        raise ConfigError("resume", str(given), "auto, never, or another run's checkpoint", do)
    there = (given / MANIFEST).is_file() or listed_checkpoints(given / "checkpoints")
    if not there and not listed_checkpoints(folder / "checkpoints"):
        allowed = "auto, never, a run's folder or one of its checkpoints"
        raise ConfigError("resume", str(given), allowed, "Look for checkpoints/step-*.")


def refuse_changed(order: RunOrder) -> None:
    """Refuse with ConfigError other settings than those in the config.yaml of the order's folder."""
    where = str(order.folder)
    try:
        former = OmegaConf.to_container(OmegaConf.load(order.folder / "config.yaml"))
    except (OSError, YAMLError) as error:
        allowed = f"the folder of a run, with its config.yaml, or a new one; here {type(error).__name__}: {error}"
        raise ConfigError("hydra.run.dir", where, allowed, "Choose another.") from error
    if changed := differences(former, order):
        allowed = f"the settings that the run in it began with; different are {', '.join(changed)}"
        raise ConfigError("hydra.run.dir", where, allowed, "Give the same settings, or another folder.")


def differences(former: Any, order: RunOrder) -> list[str]:
    """The settings that can change a number and are not what they were, each with both values.

    former: the run's settings as they were; those of them that change no number are passed over.
    """
    config = order.config
    was, now = config.as_before() | flat(former), flat(config.numeric(whole=True))
    idle = flat(resolved(config)).keys() - now.keys()
    # another plugin need not have the former one's settings
    parts = {key.partition(".")[0] for key in now} - set(SPLIT)
    gone = [key for key in was.keys() - now.keys() - idle if key.partition(".")[0] in parts]
    absent = object()
    return [
        f"{key} (was {was.get(key, 'not there')}, is now {now.get(key, 'not there')})"
        for key in [*now, *sorted(gone)]
        if was.get(key, absent) != now.get(key, absent)
    ]
