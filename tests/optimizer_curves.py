"""A small model that every optimizer trains for some steps: on one rank with ddp, on two that share it."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from support import random_pairs
from torch import Tensor

from orpo_exp.layouts.padded import Padded
from orpo_exp.optimizers import OPTIMIZERS
from orpo_exp.optimizers.base import OptimizerFactory
from orpo_exp.optimizers.lamb import Lamb
from orpo_exp.plugins import Place, Plugin, PluginConfig
from orpo_exp.plugins.hybrid import Hybrid
from orpo_exp.plugins.precision import Precision
from orpo_exp.plugins.zero import Zero2
from orpo_exp.types import Batch, Builder, BuiltModel, LossOutput, PairLogps

VOCABULARY = 21  # is padded where two ranks share it
OTHER_SETTINGS = {"galore": {"rank": 4, "update_proj_gap": 4}, "sgd": {"momentum": 0.9}}
# name -> the plugin on two ranks, its settings, whether it cuts parameters
SHARED: dict[str, tuple[type[Plugin], PluginConfig, bool]] = {
    "zero2": (Zero2, Zero2.Config(), True),
    "tensor parallelism": (Hybrid, Hybrid.Config(tp_size=2), True),
    "pipeline": (Hybrid, Hybrid.Config(pp_size=2), False),
}
RATE = 3e-3
STEPS, SAVED_AT = 5, 2  # GaLore takes its singular vectors anew at the last step: they are kept over the saving


def every_optimizer() -> dict[str, OptimizerFactory]:
    """All that are registered and can run here, by name."""
    made = {}
    for file, entry in ConfigStore.instance().repo["schema"]["optimizer"].items():
        name = file.removesuffix(".yaml")
        config = OmegaConf.get_type(entry.node)(lr=RATE, **{"weight_decay": 0.1} | OTHER_SETTINGS.get(name, {}))
        if OPTIMIZERS.of(config).lacking() is None:
            made[name] = OPTIMIZERS.build(config)
    return made


def built() -> BuiltModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BuiltModel(
        LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **sizes)), lambda logits: logits
    )


build = Builder(whole=built, empty=built)


def batches(replica: int, replicas: int) -> list[Batch]:
    """Two micro-batches of this replica's share of eight pairs."""
    pairs = random_pairs(8, VOCABULARY)[replica::replicas]
    half = len(pairs) // 2
    return [Padded(Padded.Config()).collate(part, frozenset()) for part in (pairs[:half], pairs[half:])]


def margin(number: int, logps: PairLogps) -> LossOutput:
    loss = (logps.rejected.mean() - logps.chosen.mean()).exp().sum() / 8
    return LossOutput(loss, {"loss": loss.detach()})


def trained(plugin: Plugin, steps: int) -> list[float]:
    """The loss and the gradient's norm of each step, one after the other."""
    numbers = []
    for _ in range(steps):
        outputs = plugin.forward_backward(batches(plugin.ranks.replica, plugin.ranks.replicas), margin)
        loss = plugin.ranks.sum(torch.stack([output.loss.detach().cpu() for output in outputs]).double().sum())
        numbers += [float(loss), float(plugin.step(lr=RATE) or 0)]
    return numbers


def write_curves(place: Place, folder: Path) -> int:
    """The curve of every optimizer that may have its parameters cut on the plugins that cut them, of the others on the
    one that does not; and what each comes to when it is resumed."""
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for shared, (kind, config, cut) in SHARED.items():
        for name, factory in every_optimizer().items():
            if (factory.refuses(cut=True, offloaded=False) is None) != cut:
                continue
            whole, resumed = (kind(config, place) for _ in range(2))
            for plugin in (whole, resumed):
                plugin.prepare(build, factory.make, None)
            curve = trained(whole, SAVED_AT)
            saved = folder / f"{shared} {name}"
            saved.mkdir(exist_ok=True)
            whole.save(saved, held=False)
            rest = trained(whole, STEPS - SAVED_AT)
            resumed.ranks.barrier()
            resumed.load(saved, held=False)
            curves.setdefault(shared, {})[name] = [curve + rest, rest, trained(resumed, STEPS - SAVED_AT)]
    if place.rank == 0:
        (folder / "curves.json").write_text(json.dumps(curves))
    lamb_asks_copies_how_they_are_split(place)
    dist.destroy_process_group()
    return 0


def lamb_asks_copies_how_they_are_split(place: Place) -> None:
    """LAMB's first step on float32 copies of bfloat16 weights that two ranks share: with norms of whole matrices."""
    plugin = Hybrid(Hybrid.Config(precision=Precision.bf16_weights, tp_size=2), place)
    plugin.prepare(build, Lamb(Lamb.Config(lr=1e-2)).make, None)
    gradients: dict[str, Tensor] = {}
    before = {name: weight.bfloat16().float() for name, weight in build().model.named_parameters()}
    for held in plugin.policy.held:
        # rows grow, so that the ranks' blocks have other norms than one another
        gradients[held.name] = torch.linspace(0.1, 1, before[held.name].numel()).view_as(before[held.name]).bfloat16()
        held.tensor.grad = torch.zeros_like(held.tensor)
        held.tensor.grad.view(-1)[: held.piece.numel] = held.piece.cut(gradients[held.name])
    plugin.step(lr=1e-2)
    for held in plugin._updated():
        old, gradient = before[held.name], gradients[held.name].float()
        direction = 0.1 * gradient / ((0.001 * gradient**2).sqrt() + 1e-6)
        new = old - 1e-2 * old.norm() * direction / direction.norm()
        torch.testing.assert_close(held.tensor.flatten()[: held.piece.numel], held.piece.cut(new), rtol=1e-5, atol=1e-7)
