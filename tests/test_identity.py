"""What a run is known by: runs, checkpoints and sweeps made before are found again, also where a field came later."""

import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support import order_of
from test_outside import LOSS, YAML

from orpo_exp.config import RunConfig
from orpo_exp.runs.resuming import differences
from orpo_exp.schema import Settings, setting
from orpo_exp.sweeps.points import sweep_name

# as version 0.1 computed them
HASHES = {
    "+experiment=quickstart": "13a2545271f494eb",
    "+experiment=quickstart plugin.precision=bf16 processes=2 train.micro_batch_size=3 seed=4": "141ec1599a03cc04",
    "+experiment=lambda_sweep data.split_seed=null loss.lam=0.25 lam_schedule=cosine_decay scheduler=linear":
        "cfe993c67251b7b4",
    "+experiment=orpo data.path=x.jsonl model.path=y/z loss=orpo_paper optimizer=sgd optimizer.lr=0.01":
        "cd66e39a26718d63",
    "+experiment=dpo_baseline data.path=x.jsonl model.path=y/z reference=cached loss.wpo=true": "7429d8533996ee23",
    "model=tiny data=toy train.max_steps=3 loss=combined reference=synced tracker=[]": "83bf8ed859b311dd",
    "model=tiny data=toy train.max_steps=3 loss=aot optimizer=sgd": "6e992c07b36510d9",
    "model=tiny data=toy train.max_steps=3 loss=kto scheduler=constant": "b83851e16a0d8077",
}  # fmt: skip


@pytest.mark.parametrize("command", HASHES)
def test_runs_of_the_first_version_are_found_again(command):
    assert order_of(*command.split()).config.config_hash == HASHES[command]


def test_sweeps_of_the_first_version_are_found_again():
    assert sweep_name([order_of(*command.split()).config for command in list(HASHES)[:2]], ["seed"]) == "17c48758"


@dataclass
class PrunerConfig(Settings):
    """A group that is added later, in its option that means as before."""


@dataclass
class MagnitudeConfig(PrunerConfig):
    share: int = 8


@dataclass
class Later(RunConfig):
    pruner: PrunerConfig = field(default_factory=PrunerConfig, metadata={"as_before": "none"})
    split_seed: int | None = setting(None, as_before=None)


def later(pruner: PrunerConfig, option: str, **values: object) -> Later:
    """The configuration of a command as a later version would have it."""
    config = order_of("+experiment=quickstart").config
    parts = {name: getattr(config, name) for name in vars(config)}
    parts["choices"] = config.choices | {"pruner": option}
    return Later(**parts, pruner=pruner, **values)


def test_a_group_added_later_leaves_the_identity_as_it_was_while_it_is_as_before():
    before = HASHES["+experiment=quickstart"]
    assert later(PrunerConfig(), "none").config_hash == before
    hashes = {
        later(MagnitudeConfig(), "magnitude").config_hash,
        later(MagnitudeConfig(share=4), "magnitude").config_hash,
        later(PrunerConfig(), "none", split_seed=3).config_hash,
        before,
    }
    assert len(hashes) == 4


def test_what_was_written_before_is_read_as_having_the_values_that_mean_as_before():
    order = order_of("+experiment=quickstart")
    former = order.config.numeric()
    as_before, magnitude = (
        replace(order, config=c) for c in (later(PrunerConfig(), "none"), later(MagnitudeConfig(), "magnitude"))
    )
    assert differences(former, as_before) == []
    assert "choices.pruner (was none, is now magnitude)" in differences(former, magnitude)
    assert "choices.pruner (was magnitude, is now none)" in differences(magnitude.config.numeric(), as_before)
    moved = replace(order, config=later(PrunerConfig(), "none", split_seed=3))
    assert differences(former, moved) == ["split_seed (was None, is now 3)"]
    assert differences(moved.config.numeric(), as_before) == ["split_seed (was 3, is now None)"]


def test_how_the_work_is_split_is_no_part_of_the_identity_and_precision_is():
    plain = order_of("+experiment=quickstart").config
    for same in ("processes=2", "train.micro_batch_size=1"):
        assert order_of("+experiment=quickstart", same).config.config_hash == plain.config_hash
    split = replace(plain, choices=plain.choices | {"plugin": "zero2", "layout": "packed"})
    assert split.config_hash == plain.config_hash
    assert order_of("+experiment=quickstart", "plugin.precision=bf16").config.config_hash != plain.config_hash


SHORT = [
    "+experiment=quickstart", "loss=my_margin", "train.max_steps=4", "train.samples=0", "tracker=[]",
    "data.eval_pairs=8", "train.global_batch_size=4", "train.eval_every=0", "train.save_every=2",
]  # fmt: skip


def component(folder: Path, further: bool) -> None:
    """The loss of a user, who may have given it a further field."""
    (folder / "conf" / "loss").mkdir(parents=True, exist_ok=True)
    field = "        gap: float = setting(1.0, ge=0)\n"
    share = ".sum() / counts.pairs\n"
    assert field in LOSS
    assert share in LOSS
    tilted = LOSS.replace(field, field + "        tilt: float = setting(0.0, as_before=0.0)\n")
    tilted = tilted.replace(share, share.rstrip() + " - self.config.tilt * chosen.sum()\n")
    (folder / "my_margin.py").write_text(tilted if further else LOSS)
    text = YAML + ("tilt: 0.0 # weight of the chosen answers\n" if further else "")
    (folder / "conf" / "loss" / "my_margin.yaml").write_text(text)


@pytest.mark.parallel
def test_a_component_that_got_a_further_field_finds_its_points_and_goes_on_with_its_runs(tmp_path):
    """Another value is another point, and no going on."""
    mine, stopper = tmp_path / "mine", tmp_path / "mine" / "stopper.py"
    component(mine, further=False)
    environment = os.environ | {"ORPO_EXP_PATH": str(mine), "OMP_NUM_THREADS": "1"}

    def command(*arguments: str, code: int = 0) -> str:
        run = [sys.executable, "-m", "orpo_exp", *arguments]
        done = subprocess.run(run, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=200)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    single = [*SHORT, f"hydra.run.dir={tmp_path / 'single'}"]
    stopper.write_text(
        "import os, signal\n"
        "from orpo_exp.training import Loop\n"
        "step = Loop.train_step\n"
        "Loop.train_step = lambda self: (self.step == 2 and os.kill(os.getpid(), signal.SIGTERM), step(self))[1]\n"
    )
    command(*single, code=143)
    stopper.unlink()
    swept = ["--multirun", *SHORT, "sweep.name=s"]
    assert "2 points: 2 missing; 2 to run" in command(*swept, "loss.gap=0.5,2")

    component(mine, further=True)
    assert "2 points: 2 completed; 0 to run" in command(*swept, "loss.gap=0.5,2")
    told = command(*swept, "loss.gap=0.5,2", "loss.tilt=0,0.5")
    assert "4 points: 2 missing, 2 completed; 2 to run" in told
    table = (tmp_path / "sweeps" / "quickstart" / "s" / "summary.md").read_text()
    assert "`loss.tilt`: 0, 0.5" in table
    assert "loss.tilt (was 0.0, is now 0.5)" in command(*single, "loss.tilt=0.5", code=2)
    assert "resumed at step 2 of 4" in command(*single)
