"""A loss from outside: one Python file and one YAML file in a folder that ORPO_EXP_PATH names, and nothing else."""

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from orpo_exp.cli import main
from orpo_exp.registry import Registry
from orpo_exp.tracking.jsonl import read_metrics

LOSS = """
from dataclasses import dataclass

from orpo_exp.losses.base import LOSSES, Loss, LossConfig, reward_metrics
from orpo_exp.schema import setting
from orpo_exp.types import LossOutput


@LOSSES.register("my_margin")
class MyMargin(Loss):
    @dataclass
    class Config(LossConfig):
        gap: float = setting(1.0, ge=0)

    def __call__(self, policy, reference, weight, counts):
        chosen, rejected = policy.chosen.mean(), policy.rejected.mean()
        loss = (self.config.gap - (chosen - rejected)).clamp(min=0).sum() / counts.pairs
        return LossOutput(loss, {"margin_loss": loss.detach()}, reward_metrics(chosen, rejected, policy))
"""
YAML = """# A margin of my own.
defaults:
  - /schema/loss/my_margin@_here_
  - _self_
gap: 1.0 # nats per token
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "conf" / "loss").mkdir(parents=True)
    (folder / "my_margin.py").write_text(LOSS)
    (folder / "conf" / "loss" / "my_margin.yaml").write_text(YAML)
    return folder


@pytest.mark.slow
def test_a_loss_from_outside_runs_is_swept_and_is_checked(outside, tmp_path):
    """In processes of their own: a registry outlives a test."""
    environment = os.environ | {"ORPO_EXP_PATH": str(outside), "OMP_NUM_THREADS": "1"}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        run = [sys.executable, "-m", "orpo_exp", *arguments]
        return subprocess.run(
            run, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=120, check=False
        )

    short = ["+experiment=quickstart", "loss=my_margin", "train.max_steps=2", "train.samples=0", "tracker=[]"]
    swept = command("--multirun", *short, "data.eval_pairs=8", "train.global_batch_size=4", "loss.gap=0.5,2")
    assert swept.returncode == 0, swept.stderr
    losses = [read_metrics(file)[0]["margin_loss"] for file in sorted(tmp_path.glob("sweeps/*/*/*/metrics.jsonl"))]
    assert len(losses) == 2
    assert losses[1] - losses[0] == pytest.approx(1.5, abs=0.1)

    refused = command(*short, "loss.gap=-1")
    assert refused.returncode == 2
    assert "loss.gap" in refused.stderr
    assert "my_margin" in command("--help").stdout


def test_a_folder_that_is_not_there_is_refused(monkeypatch, capfd):
    monkeypatch.setenv("ORPO_EXP_PATH", "nowhere")
    assert main(["--help"]) == 2
    assert "ORPO_EXP_PATH" in capfd.readouterr().err


class Parent:
    @dataclass
    class Config:
        size: int = 1


class Child(Parent):
    """Nothing of its own to set."""


class Alias(Parent):
    Config = Parent.Config


def test_a_component_without_a_configuration_of_its_own_gets_one():
    namesake = type("Parent", (Parent,), {"__module__": "elsewhere"})
    components = {"parent": Parent, "child": Child, "alias": Alias, "namesake": namesake}
    registry: Registry = Registry("test_outside")
    for name, component in components.items():
        assert registry.register(name)(component) is component
    for name, component in components.items():
        config = component.Config(size=2)
        assert registry.of(config) is component, name
        assert fields(config) == fields(Parent.Config)
        schema = ConfigStore.instance().repo["schema"]["test_outside"][f"{name}.yaml"].node
        assert OmegaConf.get_type(schema) is component.Config
    assert Child.Config.__name__ == "ChildConfig"
    assert (Child.Config.__module__, Child.Config.__qualname__) == (__name__, "Child.Config")
    again = pickle.loads(pickle.dumps(Child.Config(size=2)))
    assert type(again) is Child.Config
    assert again == Child.Config(size=2) != Parent.Config(size=2)


def test_a_component_needs_a_name_of_its_own_and_some_configuration():
    class Bare:
        pass

    registry: Registry = Registry("test_outside_too")
    registry.register("first")(Parent)
    with pytest.raises(ValueError, match="'first' is registered twice"):
        registry.register("first")(Child)
    with pytest.raises(ValueError, match="Bare has no Config"):
        registry.register("bare")(Bare)
