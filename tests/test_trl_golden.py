"""The first step of ORPO on hand-made weights and tokens, against TRL 1.16's released trainer and against float64.

The numbers come from `uv run benchmarks/trl_orpo_parity.py --trl-only`, which holds the weights' formula and the pairs.
"""

import importlib.util
from pathlib import Path

import pytest

from orpo_exp.tracking.jsonl import read_metrics

TRL = {
    "loss": 7.789299011,
    "nll_loss": 7.556773663,
    "odds_ratio_loss": 2.325252295,
    "log_odds_ratio": -1.959347248,
    "grad_norm": 3.398509979,
}
FLOAT64 = {
    "loss": 7.7892989509,
    "nll_loss": 7.5567737498,
    "odds_ratio_loss": 2.3252520111,
    "log_odds_ratio": -1.9593468272,
    "grad_norm": 3.3985100737,
}


@pytest.fixture
def parity(tmp_path):
    """The script that made the numbers, for its inputs alone."""
    path = Path(__file__).parents[1] / "benchmarks" / "trl_orpo_parity.py"
    spec = importlib.util.spec_from_file_location("trl_orpo_parity", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_inputs(tmp_path)
    return module


@pytest.mark.parametrize("micro_batch_size", [6, 1])
def test_first_step_agrees_with_trl_and_float64(run, parity, micro_batch_size):
    folder = run(
        "+experiment=orpo", "data=json", "data.path=pairs.jsonl", "data.eval_path=pairs.jsonl", "model=hf",
        "model.path=./model", "loss.lam=0.1", "loss.nll=prompt_and_answer", "optimizer=sgd", "train.max_steps=1",
        "train.max_grad_norm=null", f"train.global_batch_size={len(parity.PAIRS)}", "train.samples=0", "tracker=[]",
        f"train.micro_batch_size={micro_batch_size}",
    )  # fmt: skip
    first = next(row for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train")
    for name in TRL:
        assert first[name] == pytest.approx(TRL[name], rel=1e-5), name
        assert first[name] == pytest.approx(FLOAT64[name], rel=1e-6), name
