"""What rotary embeddings compute positions from is not rounded with the weights."""

import pytest
import torch

from orpo_exp.plugins import Place, Precision
from orpo_exp.plugins.hybrid import Hybrid
from orpo_exp.plugins.ranks import left_afterwards
from orpo_exp.plugins.zero import Zero1
from orpo_exp.types import Builder, BuiltModel


def made() -> BuiltModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BuiltModel(LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes)), lambda logits: logits)


@pytest.mark.parametrize("plugin", [Zero1, Hybrid])
def test_weights_of_16_bits_leave_the_frequencies_as_they_are(plugin):
    with left_afterwards():
        made_so = plugin(plugin.Config(precision=Precision.bf16_weights), Place())
        made_so.prepare(Builder(made, made), lambda of: torch.optim.AdamW(of, lr=1e-3, fused=True), None)
        made_so.hold_reference(Builder(made, made))
        for scorer in made_so.models.values():
            assert scorer.model.lm_head.weight.dtype is torch.bfloat16
            assert scorer.model.model.rotary_emb.inv_freq.equal(made().model.model.rotary_emb.inv_freq)
