"""What the README says can be typed: its blocks of Python are run but for their number of steps, its commands composed
and checked."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from adapters.small import save_llama

from orpo_exp.cli import checked_point
from orpo_exp.composition import check, compose
from orpo_exp.schema import ConfigError
from orpo_exp.sweeps.points import combinations
from orpo_exp.user_errors import ComposeError, explain

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [
    words[3:]
    for block in re.findall(r"```(?:bash|text)\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line.removeprefix("$ "), comments=True))[:3] == ["python", "-m", "orpo_exp"]
]


def test_there_are_two_and_the_other_one_has_a_test_of_its_own():
    assert ["ORPOTrainer" in block for block in BLOCKS] == [False, True]


@pytest.mark.slow
def test_what_it_says_of_python_can_be_typed(tmp_path):
    script, shortened = re.subn(r"train\.max_steps=\d+", "train.max_steps=3", BLOCKS[0])
    assert shortened == 3
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "completed" in ended.stdout
    assert "'odds_ratio_loss'" in ended.stdout
    assert "'loss.lam': '0.5'" in ended.stdout


@pytest.mark.slow
def test_its_commands_are_composed_and_checked(tmp_path, pairs_file):
    save_llama(tmp_path / "my-model")
    adapter = tmp_path / "outputs" / "big" / "model"
    adapter.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")
    assert len(COMMANDS) > 30
    refused = []
    for words in COMMANDS:
        overrides = [word for word in words if not word.startswith("--") and word != "job"]
        try:
            if "--multirun" in words:
                composed = compose(combinations(overrides)[0].overrides, None)
                checked_point(combinations(overrides)[0], None, composed.hydra.sweeper.params or {})
            else:
                check(compose(overrides, None), overrides)
        except (ConfigError, *ComposeError) as error:
            refused.append((words[-1], explain(error, overrides).key))
    assert refused == [("loss.lamda=0.5", "loss.lamda")]  # which it shows as what is refused
