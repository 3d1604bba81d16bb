import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from orpo_exp.models.attention import Attention
from orpo_exp.models.base import set_dropout
from orpo_exp.models.head import check_model
from orpo_exp.models.pretrained import Pretrained
from orpo_exp.models.scratch import Scratch, causal_lm_types
from orpo_exp.models.tokenizers import bytes_tokenizer, trained_tokenizer
from orpo_exp.schema import ConfigError, Refused

TINY = {"tokenizer": "bytes", "vocab_size": None, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def scratch(**settings):
    return Scratch(Scratch.Config(**(TINY | settings)))


def made(seed=0, **settings):
    """The model of a source made from scratch."""
    return scratch(**settings).prepare([], seed).build().model


def save(folder, **settings):
    """A tiny model and its tokenizer in a folder, as users have them."""
    lm = scratch(**settings).prepare([], seed=3)
    lm.build().model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return Pretrained(Pretrained.Config(path=str(folder)))


@pytest.mark.versions
@pytest.mark.parametrize(
    "arch", ["llama", "qwen2", "mistral", "gemma2", "gpt2", "cohere", "granite", "gpt_neox", "phi", "falcon"]
)
def test_architectures_build_and_their_heads_are_understood(arch):
    """`build` compares with the model's own logits: Gemma's soft cap, Cohere's and Granite's scales are in it."""
    model = made(arch=arch)
    assert model.config.hidden_size == 32
    assert model.config.vocab_size == 259
    assert model.get_input_embeddings().weight.shape == (259, 32)


def test_the_logits_differ_where_the_head_is_finished():
    built = scratch(arch="gemma2").prepare([], seed=0).build()
    assert built.finish_logits(torch.tensor([1e6])).item() == pytest.approx(30.0)


def test_an_unknown_finish_is_refused():
    model = made(arch="granite")
    model.config.logits_scaling = 4.0
    with pytest.raises(Refused, match="changes its logits"):
        check_model(model, lambda logits: logits)


def test_a_model_that_looks_ahead_is_refused():
    with pytest.raises(Refused, match="looks ahead"):
        made(arch="bert")


def test_sizes_under_hugging_faces_names():
    sizes = {"num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": False, "vocab_size": 300}
    config = made(**sizes).config
    assert {name: getattr(config, name) for name in sizes} == sizes


def test_a_size_the_architecture_lacks_is_refused():
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        scratch(arch="gpt2", num_key_value_heads=2).prepare([], seed=0)


def test_the_weights_follow_the_seed_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (made(seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("arch", "names"), [("gpt2", ("resid_pdrop", "embd_pdrop", "attn_pdrop")), ("llama", ("attention_dropout",))]
)
def test_dropout_sets_every_field(arch, names):
    for dropout in (0.0, 0.25):
        config = made(arch=arch, dropout=dropout).config
        assert {getattr(config, name) for name in names} == {dropout}


def test_dropout_fields_that_are_no_numbers_stay():
    config = SimpleNamespace(attention_dropout=0.1, hidden_dropout=0, classifier_dropout=None, use_dropout=True)
    config.to_dict = lambda: {k: v for k, v in vars(config).items() if k != "to_dict"}
    set_dropout(config, 0.5)
    assert (config.attention_dropout, config.hidden_dropout) == (0.5, 0.5)
    assert (config.classifier_dropout, config.use_dropout) == (None, True)


def test_bytes_and_trained_tokenizers_lose_nothing():
    text = "Grüße, 世界! \n\t  two  spaces"
    for tokenizer in (bytes_tokenizer(), trained_tokenizer([text * 3, "more text"], 300)):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(bytes_tokenizer()) == 259
    assert len(bytes_tokenizer()("ü").input_ids) == 2


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path):
    trained_tokenizer(["some words to merge " * 50, "and others"], 280).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="vocab_size"):
        scratch(tokenizer=str(tmp_path), vocab_size=260).prepare([], seed=0)


@pytest.mark.versions
def test_every_build_gives_a_model_of_its_own_with_the_same_weights(tmp_path):
    for source in (scratch(gradient_checkpointing=True), save(tmp_path)):
        lm = source.prepare([], seed=3)
        one, other = lm.build().model, lm.build().model
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        with torch.no_grad():
            next(one.parameters()).fill_(7.0)
        assert not torch.equal(next(one.parameters()), next(lm.build().model.parameters()))
        assert one.is_gradient_checkpointing == source.config.gradient_checkpointing


def test_weights_that_a_folder_lacks_are_drawn_from_the_seed(tmp_path):
    source = save(tmp_path, tie_word_embeddings=False)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    one, same, other = (source.prepare([], seed).build().model.lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_preparing_loads_no_weights(tmp_path):
    source = save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    lm = source.prepare([], seed=0)
    assert len(lm.tokenizer) == 259
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        lm.build()


def test_a_saved_model_comes_back_and_pickled_weights_are_refused(tmp_path):
    source, model = save(tmp_path / "good"), made(seed=3)
    back = source.prepare([], seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.build().model.parameters(), strict=True))
    assert back.tokenizer("hi").input_ids == bytes_tokenizer()("hi").input_ids

    shutil.copytree(tmp_path / "good", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        Pretrained(Pretrained.Config(path=str(tmp_path / "pickled"))).check()


def test_a_folder_whose_tokenizer_has_more_tokens_than_the_model_is_refused(tmp_path):
    source = save(tmp_path)
    larger = bytes_tokenizer()
    larger.add_tokens(["one more"])
    larger.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="260 tokens"):
        source.prepare([], seed=0)


@pytest.mark.versions
@pytest.mark.parametrize("tied", [False, True])
def test_more_tokens_get_embeddings_at_the_mean_where_that_is_asked_for(tmp_path, tied):
    before = save(tmp_path, tie_word_embeddings=tied).prepare([], seed=0).build().model
    larger = bytes_tokenizer()
    larger.add_tokens(["one more", "and another"])
    larger.save_pretrained(tmp_path)
    source = Pretrained(Pretrained.Config(path=str(tmp_path), resize_embeddings=True))
    causal_lm = source.prepare([], seed=0)
    for model in (causal_lm.build.whole().model, causal_lm.build.empty().model):
        assert model.config.vocab_size == len(larger)
        assert len(model.get_input_embeddings().weight) == len(model.get_output_embeddings().weight) == len(larger)
    model = causal_lm.build().model
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    for end in ("get_input_embeddings", "get_output_embeddings"):
        former, now = getattr(before, end)().weight, getattr(model, end)().weight
        rows = len(former)
        assert now[:rows].equal(former)
        torch.testing.assert_close(now[rows:], former.mean(0).expand(len(larger) - rows, -1))


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    source = save(tmp_path)
    endless = bytes_tokenizer()
    endless.eos_token = None
    endless.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="EOS"):
        source.prepare([], seed=0)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"{"),  # a plain Exception
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"tokenizer_class": "Nope"}'),
        ("config.json", b"{"),  # an OSError
        ("config.json", b'{"model_type": "nope", "vocab_size": 259}'),  # a ValueError
        ("config.json", b'{"model_type": "t5", "vocab_size": 259}'),
        (
            "config.json",
            b'{"model_type": "llama", "vocab_size": 259, "rope_scaling": {"rope_type": "nope"}}',
        ),  # a KeyError
        ("model.safetensors", b"cut short"),  # a SafetensorError
    ],
)
def test_whatever_transformers_makes_of_a_broken_folder_is_told_as_refused(tmp_path, file, content):
    source = save(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.path"):
        source.prepare([], seed=0).build()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"arch": "nope"}, "arch"),  # a KeyError
        ({"arch": "musicgen"}, "arch"),  # a ValueError
        ({"arch": "mpt"}, "arch"),  # knows no sdpa
        ({"attention": Attention.flash_attention_2}, "arch"),  # is not installed here: an ImportError
        ({"arch": "ctrl", "attention": Attention.eager, "gradient_checkpointing": True}, "gradient_checkpointing"),
    ],
)
def test_what_cannot_be_made_is_told_as_refused(settings, key):
    with pytest.raises(ConfigError, match=rf"model\.{key}"):
        made(**settings)


def test_the_list_of_architectures_is_the_librarys_own():
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    known = {name for name in CONFIG_MAPPING if CONFIG_MAPPING[name] in MODEL_FOR_CAUSAL_LM_MAPPING}
    assert known == set(causal_lm_types())
