"""What an adapter, and the reference that it makes possible, take on a model whose weights dominate."""

import json

import pytest
from host_memory import make_model
from support import start_run, wait_for_end

pytestmark = pytest.mark.slow

RUN = [
    "+experiment=orpo", "model=hf", "data=json", "data.path=pairs.jsonl", "data.eval_size=2", "tracker=[]",
    "train.global_batch_size=8", "train.max_steps=3", "train.eval_every=0", "train.save_every=2", "train.samples=0",
    "train.micro_batch_size=1",
    "adapter=lora",
]  # fmt: skip
RUNS = {
    "tiny": ["model.path=tiny"],
    "orpo": ["model.path=large"],
    "base": ["model.path=large", "loss=dpo", "reference=base"],
    "frozen": ["model.path=large", "loss=dpo", "reference=frozen"],
}


def test_a_reference_that_is_the_beginning_takes_no_memory_and_a_checkpoint_is_small(tmp_path, pairs_file):
    make_model(tmp_path / "tiny", 64, 2)
    size = make_model(tmp_path / "large", 1024, 8, vocabulary=4096)
    peaks = {}
    for name, overrides in RUNS.items():
        wait_for_end(start_run(tmp_path, *RUN, *overrides, f"hydra.run.dir={name}"))
        peaks[name] = json.loads((tmp_path / name / "result.json").read_text())["peak_memory_bytes"]
    growth = {name: peak - peaks["tiny"] for name, peak in peaks.items()}
    assert growth["orpo"] > 0.9 * size
    assert growth["base"] <= 1.05 * growth["orpo"]
    # a second model shows, if not all of it: to load the first one took a part of that room already
    assert growth["frozen"] >= growth["base"] + 0.5 * size
    checkpoint = tmp_path / "orpo" / "checkpoints" / "step-00000002"
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) < 0.05 * size
