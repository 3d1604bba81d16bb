"""Every loss of conf/: one curve, whatever the micro-batches and the number of ranks. `uv run pytest -m parallel`."""

import json
from pathlib import Path

import pytest
from support import order_of, train_all, uneven_rows

from orpo_exp.tracking.jsonl import read_metrics

pytestmark = pytest.mark.parallel

LOSSES = sorted(file.stem for file in (Path(__file__).parents[2] / "conf" / "loss").glob("*.yaml"))
BASE = (
    "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=3", "train.global_batch_size=8",
    "train.epochs=1", "train.samples=0", "train.max_grad_norm=null", "tracker=[]", "optimizer=sgd",
    "scheduler=constant", "reference=frozen",
)  # fmt: skip
# the first gradient is some hundred times larger, or smaller, than those of the others
LR = {"sppo_hard": 1e-4, "dpo_norm": 1.0}
SPLITS = {"whole": (1, 8), "split": (2, 1)}  # ranks, pairs per forward
NOT_COMPARED = {"split", "time", "pairs_per_second", "tokens_per_second"}


@pytest.fixture(scope="module")
def curves(tmp_path_factory) -> Path:
    """Folders <split>/<loss>: three steps, the last on 5 of the 21 pairs, which leaves one of two ranks without one."""
    folder = tmp_path_factory.mktemp("curves")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(24)))
        orders = {loss: order_of(*BASE, f"loss={loss}", f"optimizer.lr={LR.get(loss, 1e-2)}") for loss in LOSSES}
        for split, (ranks, size) in SPLITS.items():
            train_all(ranks, size, orders, folder / split)
    return folder


@pytest.mark.parametrize("loss", LOSSES)
def test_each_term_metric_and_gradient_norm_is_the_same(curves, loss):
    whole, split = (read_metrics(curves / name / loss / "metrics.jsonl") for name in SPLITS)
    assert [row["step"] for row in whole] == [0, 1, 2, 3, 3]
    for a, b in zip(whole, split, strict=True):
        assert a.keys() == b.keys()
        assert a["split"] == b["split"]
        if abs(a["rewards/margin"]) < 1e-5:  # policy and reference are equal: rounding decides who is ahead
            del a["rewards/accuracy"]
        for name in a.keys() - NOT_COMPARED:
            # rewards are differences of float32 log-probabilities: near 0 they have no relative precision
            close = 2e-6 if name.startswith("rewards/") else 0
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=close), (name, a["split"], a["step"])
