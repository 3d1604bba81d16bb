"""The README's blocks of Python, run as they are written but for their number of steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


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
