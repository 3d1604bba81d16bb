"""A plugin from outside the package, of less than 60 lines, made of the parts that ddp is made of, on two ranks.

Its two ranks form one replica, of which the second computes nothing: what must be said once is said once, what decides
the way is agreed on by both, outputs are handed out. `uv run pytest -m parallel`.
"""

import json
from pathlib import Path

import pytest
from support import killed_at, start_run, wait_for_end

from orpo_exp.tracking.jsonl import read_metrics

pytestmark = pytest.mark.parallel

PLUGIN = """
import math

import torch

from orpo_exp.plugins.base import PLUGINS, Plugin, Which
from orpo_exp.plugins.whole import WholeModel, load_whole, save_whole
from orpo_exp.types import BuiltModel


@PLUGINS.register("mirror")
class Mirror(Plugin):
    checkpoint_form = "mirror"

    @classmethod
    def replica_of(cls, config, world_size):
        return [rank // 2 for rank in range(world_size)]

    def prepare(self, build, make_optimizer, max_grad_norm):
        built = build()
        self.adopt(built.model, make_optimizer(built.model.parameters()), built.finish_logits, max_grad_norm)

    def adopt(self, model, optimizer, finish_logits, max_grad_norm):
        self.policy = self.models[Which.policy] = self.whole(BuiltModel(model, finish_logits))
        self.optimizer, self.most = optimizer, max_grad_norm or math.inf

    def whole(self, built):
        return WholeModel(built, self.device, self.config.precision.dtype)

    def hold_reference(self, build):
        self.models[Which.held] = self.whole(build())

    def forward_backward(self, micro_batches, objective):
        outputs = [] if self.ranks.rank % 2 == 0 else None
        for number, batch in enumerate(micro_batches if outputs is not None else ()):
            outputs.append(objective(number, self.policy.logps(batch)))
            outputs[-1].loss.backward()
        for parameter in self.policy.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.distributed.all_reduce(parameter.grad)
        return self.ranks.hand_out(outputs)

    def step(self, lr):
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.most))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def save(self, folder, held):
        return save_whole(folder, self.ranks, self.policy, self.optimizer, self.models.get(Which.held), self.loss_scale)

    def load(self, folder, held):
        load_whole(folder, self.ranks, self.policy, self.optimizer, self.models.get(Which.held), self.loss_scale)

    def save_weights(self, folder):
        if self.ranks.is_main:
            self.policy.model.save_pretrained(folder)
"""
YAML = """# Mirrored ranks.
defaults:
  - /schema/plugin/mirror@_here_
  - _self_
precision: fp32 # of matrix products
"""
BASE = [
    "+experiment=orpo", "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=3", "train.epochs=2",
    "train.global_batch_size=8", "train.micro_batch_size=3", "train.eval_every=2", "train.save_every=2",
    "train.samples=1", "train.sample_tokens=4", "optimizer.lr=1e-3", "tracker=[]",
]  # fmt: skip
CASES = {
    "orpo": ["loss=orpo"],
    "dpo, cached": ["loss=dpo", "reference=cached", "reference.folder=cache"],
    "kto, synced": ["loss=kto", "reference=synced", "reference.every=2", "reference.mix=0.5"],
}
RATES = {"time", "pairs_per_second", "tokens_per_second"}


def test_it_is_as_short_as_it_should_be():
    assert len(PLUGIN.strip().splitlines()) < 60


@pytest.mark.parametrize("case", CASES)
def test_it_trains_on_two_ranks_with_the_curve_of_ddp_on_one(run, tmp_path, pairs_file, case):
    folder = tmp_path / "mine"
    (folder / "conf" / "plugin").mkdir(parents=True)
    (folder / "mirror.py").write_text(PLUGIN)
    (folder / "conf" / "plugin" / "mirror.yaml").write_text(YAML)
    cut, environment = tmp_path / "cut", {"ORPO_EXP_PATH": str(folder)}
    command = [*BASE, *CASES[case], "plugin=mirror", "processes=2", f"hydra.run.dir={cut}"]
    if case == "orpo":
        killed_at(3, start_run(tmp_path, *command, environment=environment), cut)
    wait_for_end(start_run(tmp_path, *command, environment=environment))
    result = json.loads((cut / "result.json").read_text())
    assert (result["status"], result["world_size"]) == ("completed", 2)
    one = run(*BASE, *CASES[case], folder="one")
    for ours, theirs in zip(rows(cut), rows(one), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours.pop("split") == theirs.pop("split")
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def rows(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in RATES} for row in read_metrics(folder / "metrics.jsonl")]
