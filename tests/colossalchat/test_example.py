"""The README's example for those who come from ColossalChat, as it is written, started by torchrun on two ranks.

`uv run pytest -m slow`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from colossalchat.small import boosted, drawn, llama, loader, weights

from orpo_exp import ORPOTrainer
from orpo_exp.plugins import Place
from orpo_exp.plugins.ranks import join_process_group, left_afterwards

pytestmark = pytest.mark.slow

# What the example takes as given: of 22 pairs the half for each rank, so that an epoch's last step is short.
BEFORE = """
import colossalai
import torch
from colossalai.cluster import DistCoordinator
from colossalchat.small import boosted, drawn, llama, loader, weights

colossalai.launch_from_torch()
coordinator, tokenizer, model = DistCoordinator(), None, llama()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9)
own = drawn(22)[coordinator.rank :: 2]
train_dataloader, eval_dataloader = loader(own, 2), loader(own[:2], 1)
"""
# In float32, for the comparison with one rank.
AFTER = """
given = boosted("LowLevelZeroPlugin", stage=2, precision="fp32")
trainer = ORPOTrainer(**given, max_epochs=2, accumulation_steps=4)
trainer.fit(loader(own, 2))
if coordinator.is_master():
    torch.save(weights(given["actor"]), "weights.pt")
"""


def example() -> str:
    """The README's block of Python with the trainer in it."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "ORPOTrainer" in block)
    return block


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> Path:
    """The folder in which it was run. It saves every two steps, for it has six."""
    folder = tmp_path_factory.mktemp("example")
    saving = example().replace("save_interval=500", "save_interval=2")
    assert saving != example()
    (folder / "train.py").write_text(BEFORE + saving + AFTER)
    tests, here = str(Path(__file__).parents[1]), str(Path(__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": f"{tests}:{here}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return folder


def test_the_example_trains_to_its_end_and_leaves_what_it_promises(left):
    saved = left / "checkpoints"
    results = [f"eval_result_epoch{epoch}.txt" for epoch in range(3)]
    assert sorted(path.name for path in saved.iterdir()) == [f"epoch-{epoch}_step-6" for epoch in range(3)] + results
    losses = [float(re.search(r"^loss: (.*)$", (saved / name).read_text(), re.M)[1]) for name in results]
    assert losses == sorted(losses, reverse=True)
    (logs,) = (left / "logs" / "orpo").iterdir()
    assert list(logs.glob("events.out.tfevents.*"))
    assert list(logs.glob("wandb/offline-run-*/*.wandb"))


def test_two_ranks_leave_the_weights_of_one(left):
    pairs = drawn(22)
    with left_afterwards():
        join_process_group(Place(), "gloo")
        given = boosted()
        ORPOTrainer(**given, max_epochs=2, accumulation_steps=4).fit(loader(pairs, 4))
        one = weights(given["actor"])
    two = torch.load(left / "weights.pt", weights_only=True)
    for name, of in one.items():
        torch.testing.assert_close(two[name], of, rtol=1e-5, atol=1e-6)
    assert not any(of.equal(dict(llama().named_parameters())[name]) for name, of in one.items() if "proj" in name)
