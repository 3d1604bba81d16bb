"""What a configuration asks of attention is done: the logits are those of a kernel that does it."""

import json
import logging

import pytest
import torch

from orpo_exp.models.attention import Attention, kernel_for
from orpo_exp.models.pretrained import Pretrained
from orpo_exp.models.scratch import Scratch
from orpo_exp.schema import ConfigError

TINY = {"tokenizer": "bytes", "vocab_size": None, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = torch.randint(3, 259, (2, 24), generator=torch.Generator().manual_seed(0))


class Asking(Scratch):
    """Random weights, large ones so that attention is far from even, in a configuration with something more in it."""

    def __init__(self, arch, asked, attention=Attention.sdpa):
        super().__init__(Scratch.Config(arch=arch, initializer_range=1.0, attention=attention, **TINY))
        self.asked = asked

    def hf_config(self, tokenizer):
        config = super().hf_config(tokenizer)
        for name, value in self.asked.items():
            setattr(config, name, value)
        return config


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, use_cache=False).logits


def with_kernel(model, kernel, **changed):
    """The same weights in a model that transformers itself makes with a kernel."""
    from transformers import AutoModelForCausalLM

    config = type(model.config).from_dict(model.config.to_dict() | changed)
    other = AutoModelForCausalLM.from_config(config, attn_implementation=kernel)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    ("arch", "asked", "chosen", "right"),
    [
        ("gemma2", {"attn_logit_softcapping": 5.0}, "sdpa", "eager"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "sdpa", "eager"),
        ("gpt2", {"scale_attn_weights": False}, "sdpa", "eager"),
        ("falcon", {"alibi": True}, "eager", "sdpa"),
    ],
)
def test_a_kernel_that_leaves_something_out_is_replaced(arch, asked, chosen, right, caplog):
    model = Asking(arch, asked, Attention(chosen)).prepare([], seed=0).build().model
    ours = logits(model)
    assert torch.equal(ours, logits(with_kernel(model, right)))
    assert (ours - logits(with_kernel(model, chosen))).abs().max() > 1e-3 * ours.abs().max()
    assert f"{right} is used instead" in caplog.text


def test_a_saved_model_gets_the_kernel_that_it_needs(tmp_path):
    lm = Asking("gemma2", {"attn_logit_softcapping": 5.0}).prepare([], seed=0)
    lm.build().model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attn_logit_softcapping"] == 5.0
    model = Pretrained(Pretrained.Config(path=str(tmp_path))).prepare([], seed=0).build().model
    ours = logits(model)
    assert torch.equal(ours, logits(with_kernel(model, "eager")))
    assert (ours - logits(with_kernel(model, "sdpa"))).abs().max() > 1e-3 * ours.abs().max()


def test_a_kernel_that_does_all_is_kept_without_a_word(caplog):
    caplog.set_level(logging.WARNING)
    for arch, asked, chosen in (
        ("gemma2", {"attn_logit_softcapping": None}, Attention.sdpa),
        ("gemma2", {}, Attention.eager),
        ("gpt2", {}, Attention.sdpa),
        ("llama", {}, Attention.sdpa),
        ("qwen2", {"sliding_window": 4}, Attention.sdpa),
    ):
        model = Asking(arch, asked, chosen).prepare([], seed=0).build().model
        assert model.config._attn_implementation == chosen.value
    assert "instead" not in caplog.text


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_a_window_that_is_not_in_use_cuts_nothing(arch):
    """Transformers masks by `sliding_window` where `use_sliding_window` is false, as it is by default."""
    model = Asking(arch, {"use_sliding_window": False, "sliding_window": 4}).prepare([], seed=0).build().model
    assert torch.equal(logits(model), logits(with_kernel(model, "sdpa", sliding_window=2048)))
    assert not torch.allclose(logits(model), logits(with_kernel(model, "sdpa", sliding_window=4)), atol=0.1)


def hf_config(model_type, **settings):
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](**settings)


def test_what_only_flash_attention_does_is_refused_with_other_kernels():
    def windowed(window, full_layers):
        sizes = {"sliding_window": window, "max_window_layers": full_layers, "max_position_embeddings": 64}
        return hf_config("qwen2", use_sliding_window=True, **sizes)

    narrow = windowed(32, full_layers=2)
    assert kernel_for(narrow, Attention.flash_attention_2) is Attention.flash_attention_2
    assert kernel_for(windowed(64, full_layers=2), Attention.sdpa) is Attention.sdpa  # no text is longer than it
    assert kernel_for(windowed(32, full_layers=0), Attention.sdpa) is Attention.sdpa
    with pytest.raises(ConfigError, match="flash_attention_2") as told:
        kernel_for(narrow, Attention.sdpa)
    assert (told.value.key, told.value.given) == ("model.attention", "sdpa")


def test_what_no_kernel_does_is_refused():
    for attention in Attention:
        with pytest.raises(ConfigError, match="attn_logit_softcapping"):
            kernel_for(hf_config("gemma3_text", attn_logit_softcapping=5.0), attention)


def test_flash_attention_is_replaced_where_it_leaves_something_out():
    assert kernel_for(hf_config("gpt_neo"), Attention.flash_attention_2) is Attention.eager
    assert kernel_for(hf_config("gemma2"), Attention.flash_attention_2) is Attention.flash_attention_2
