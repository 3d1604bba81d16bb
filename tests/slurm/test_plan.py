"""What a real Slurm says of a plan. `uv run pytest -m slurm`."""

import pytest
from slurm.commands import Commands

pytestmark = pytest.mark.slurm


def test_a_plan_asks_slurm_and_submits_nothing(commands: Commands):
    before = set(commands.folder.iterdir())
    told = commands.give("plan_only=true", "hydra.launcher.nodes=2", "hydra.launcher.partition=high")
    assert "The partition high is up." in told
    assert "2 of 2 nodes have what is asked for (2 with 1 cores)." in told
    assert "on cpu, 2 in all" in told
    told = commands.give("plan_only=true", "hydra.launcher.gpus_per_node=1", code=1)
    assert "No: 0 of 2 nodes have what is asked for (1 with 1 cores, 1 GPUs)" in told
    told = commands.give("--multirun", "plan_only=true", "seed=0,1", "hydra.launcher.partition=nope", code=1)
    assert "No: There is no partition nope; there are: main, high." in told
    assert not commands.cluster.jobs()
    assert set(commands.folder.iterdir()) == before
