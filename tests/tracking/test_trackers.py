"""What holds for all trackers: the fan-out, the files in conf/tracker, what may be imported."""

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from orpo_exp.tracking import TRACKERS, RunInfo, Tracker, TrackerConfig, Trackers

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "tracker").glob("*.yaml"))


class Recorder(Tracker):
    def __init__(self, fails: bool = False) -> None:
        super().__init__(TrackerConfig())
        self.fails = fails
        self.seen: list[str] = []

    def log(self, step, split, metrics):
        self.seen.append(f"{split} {step}")
        if self.fails:
            raise OSError("the disk is full")

    def flush(self):
        self.seen.append("flush")

    def finish(self, result):
        self.seen.append(result["status"])


def test_a_tracker_that_raises_is_reported_once_and_the_others_go_on(tmp_path):
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("orpo_exp.tracking").addHandler(handler)
    try:
        broken, good = Recorder(fails=True), Recorder()
        trackers = Trackers([broken, good])
        trackers.start(RunInfo(tmp_path, "test", {}, 2))
        trackers.log(1, "train", {"loss": 1.0})
        trackers.log(2, "train", {"loss": 1.0})
        trackers.flush()
        trackers.finish({"status": "completed"})
    finally:
        logging.getLogger("orpo_exp.tracking").removeHandler(handler)
    assert good.seen == ["train 1", "train 2", "flush", "completed"]
    assert broken.seen == ["train 1"]
    assert len(messages) == 1
    assert "the disk is full" in messages[0]


@pytest.fixture
def composed(tmp_path):
    (tmp_path / "config.yaml").write_text(
        f"defaults: [{{tracker: [{', '.join(NAMES)}]}}, _self_]\nhydra: {{searchpath: ['file://{CONF}']}}\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        return compose("config", overrides=["tracker.wandb.mode=offline", "tracker.wandb.tags=[a,b]"])


def test_several_trackers_compose_side_by_side(composed):
    assert sorted(composed.tracker) == NAMES
    wandb = OmegaConf.to_object(composed.tracker.wandb)
    assert (wandb.mode.name, wandb.tags) == ("offline", ["a", "b"])
    assert all(isinstance(TRACKERS.build(OmegaConf.to_object(node)), Tracker) for node in composed.tracker.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_yaml_says_every_key_with_the_default_of_the_class(composed, name):
    schema = OmegaConf.get_type(composed.tracker[name])
    written = yaml.safe_load((CONF / "tracker" / f"{name}.yaml").read_text())
    del written["defaults"]
    defaults = OmegaConf.to_container(OmegaConf.structured(schema), enum_to_str=True)
    assert written == defaults
    assert set(written) == {field.name for field in dataclasses.fields(schema)}


def test_importing_the_room_imports_nothing_heavy():
    heavy = {"wandb", "tensorboard", "matplotlib", "torch"}
    code = f"import sys, orpo_exp.tracking; print(*({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
