"""The memory of a micro-batch, told without numbers, against tensors counted by hand and those that autograd keeps."""

import pytest
import torch
from support import order_of, random_pairs

from orpo_exp.layouts.shared import Packed
from orpo_exp.models import MODELS
from orpo_exp.planning.imagined import Alive, Imagined
from orpo_exp.planning.planner import sizes_of
from orpo_exp.plugins.precision import Precision

TINY = ("model=tiny", "data=toy", "train.max_steps=1")


def test_a_linear_layer_counted_by_hand():
    """(4, 8) x (8, 16) in float32, and ReLU: both results have 256 bytes, and ReLU keeps its own alone."""
    x, w = torch.ones(4, 8), torch.ones(8, 16, requires_grad=True)
    with Alive([x, w]) as alive:
        product = x @ w
        out = product.relu()
        assert (alive.now, alive.most) == (512, 512)
        view = out[:2]
        assert alive.now == 512  # a view takes no memory
        del product
        assert alive.now == 256
        del out
        assert alive.now == 256  # what the view looks at
        del view
    assert (alive.now, alive.most) == (0, 512)


def imagined(*overrides: str) -> Imagined:
    order = order_of(*TINY, *overrides)
    build = MODELS.build(order.config.model).prepare([], 0).build
    return Imagined(build.empty(), order.config.plugin.precision)


def test_parameters_of_a_llama_written_out():
    """Two layers of width 64: four square matrices, three of 64 x 256, two norms; one embedding of 259 tokens."""
    model = imagined()
    parameters = 259 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 256 + 2 * 64) + 64
    assert model.parameters == sum(of.numel() for of in model.trained) == parameters
    sizes = sizes_of(order_of(*TINY).config, model)
    assert (sizes.weights, sizes.trained, sizes.updated, sizes.state) == tuple(parameters * n for n in (4, 4, 4, 8))
    held = sizes_of(order_of(*TINY, "loss=dpo").config, model)
    assert held.weights == 2 * sizes.weights


def test_weights_of_16_bits_take_half():
    build = MODELS.build(order_of(*TINY).config.model).prepare([], 0).build
    model = Imagined(build.empty(), Precision.bf16_weights)
    sizes = sizes_of(order_of(*TINY).config, model)
    assert sizes.weights == 2 * model.parameters
    assert sizes.updated == 4 * model.parameters


@pytest.mark.parametrize("vocabulary", [300, 20_000])
def test_a_micro_batch_takes_what_autograd_keeps_and_little_more(vocabulary):
    """Counted once more by torch's own hooks, on a model with numbers."""
    overrides = (f"model.vocab_size={vocabulary}",)
    batch = Packed(Packed.Config()).collate(random_pairs(12, 250), frozenset())
    blocks, head = imagined(*overrides).trains(batch)

    from orpo_exp.plugins.whole import WholeModel

    built = MODELS.build(order_of(*TINY, *overrides).config.model).prepare([], 0).build.whole()
    model = WholeModel(built, torch.device("cpu"), torch.float32)
    known = {of.untyped_storage().data_ptr() for of in model.model.parameters()}
    kept: dict[int, int] = {}

    def pack(of: torch.Tensor) -> torch.Tensor:
        storage = of.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return of

    model.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda of: of):
        scored = model.logps(batch)
    logits = 4 * vocabulary * len(batch.score.target)
    assert len(scored.chosen.values)
    assert logits <= head <= logits + 3 * 4 * 64 * (vocabulary + len(batch.score.target)) + 2**20
    assert 0.8 * sum(kept.values()) <= blocks <= 1.6 * sum(kept.values())


def test_an_evaluation_and_recomputed_blocks_take_less():
    batch = Packed(Packed.Config()).collate(random_pairs(12, 250), frozenset())
    training = sum(imagined().trains(batch))
    assert sum(imagined().scores(batch)) < training / 2
    assert sum(imagined("model.gradient_checkpointing=true").trains(batch)) < training
