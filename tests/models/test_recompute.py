"""Gradient checkpointing, by what it computes again and by what it keeps."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_exp.models.recompute import Keeps, recompute

LAYERS, PRODUCTS_OF_A_LAYER = 3, 7  # query, key, value, output; gate, up, down
TOKENS, HIDDEN, INNER = 40, 32, 64


class Calls(TorchDispatchMode):
    """How often a product of matrices and an attention were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.attentions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.products += name == "mm"
        self.attentions += name == "_scaled_dot_product_flash_attention_for_cpu"
        return func(*args, **(kwargs or {}))


def model_of(keeps: Keeps | None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).train()
    if keeps:
        recompute(model, keeps)
    return model


def hidden_of(model: LlamaForCausalLM) -> torch.Tensor:
    ids = torch.randint(50, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return model.model(input_ids=ids, use_cache=False).last_hidden_state


@pytest.mark.parametrize(
    ("keeps", "again"),
    [(None, 0), (Keeps.products, 0), (Keeps.nothing, LAYERS)],
)
def test_what_is_kept_is_not_computed_again(keeps, again):
    model = model_of(keeps)
    with Calls() as calls:
        hidden = hidden_of(model)
        assert (calls.products, calls.attentions) == (LAYERS * PRODUCTS_OF_A_LAYER, LAYERS)
        hidden.sum().backward()
    assert calls.attentions == LAYERS + again
    # of each product the gradients of both factors, and perhaps itself once more; a block's last one is needed by none
    assert calls.products == 3 * LAYERS * PRODUCTS_OF_A_LAYER + again * (PRODUCTS_OF_A_LAYER - 1)


def test_the_gradients_are_the_same_bits():
    gradients = []
    for keeps in (None, *Keeps):
        model = model_of(keeps)
        hidden_of(model).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.model.parameters()])
    for of in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(of, gradients[0], strict=True))
