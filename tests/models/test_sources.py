"""What is known of a model before it is made: where it comes from, how many positions it has."""

import shutil
import subprocess
import sys

import pytest

from orpo_exp.models.attention import Attention, positions
from orpo_exp.models.pretrained import Pretrained
from orpo_exp.models.scratch import Scratch
from orpo_exp.models.tokenizers import trained_tokenizer
from orpo_exp.schema import ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a tiny model."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 64}
    lm = Scratch(Scratch.Config(tokenizer="bytes", vocab_size=None, **sizes)).prepare([], seed=0)
    lm.build().model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def pretrained(path, **settings):
    return Pretrained(Pretrained.Config(path=str(path), **settings))


def scratch(**settings):
    return Scratch(Scratch.Config(**settings))


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """A hub's cache that holds `owner/name` at COMMIT; the hub itself cannot be reached."""
    import huggingface_hub.constants
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # transformers 4 has copies of these
    monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", True, raising=False)
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    cached = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(saved, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    return cached


def test_a_folders_digest_is_that_of_its_content_wherever_it_lies(saved, folder):
    before = pretrained(saved).digest(seed=0)
    assert len(before) == 64
    assert before == pretrained(folder).digest(seed=1) == pretrained(f"{folder}/").digest(seed=0)
    (folder / "README.md").write_text("Nothing that a model is made of.")
    assert pretrained(folder).digest(seed=0) == before


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_byte_changes_a_folders_digest(saved, folder, file):
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(content)
    assert pretrained(folder).digest(seed=0) != pretrained(saved).digest(seed=0)


def test_a_file_by_another_name_changes_a_folders_digest(saved, folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert pretrained(folder).digest(seed=0) != pretrained(saved).digest(seed=0)


def test_a_hub_ids_digest_is_that_of_the_commit(hub):
    by_branch, by_commit = (pretrained("owner/name", revision=r).digest(seed=0) for r in ("main", COMMIT))
    assert by_branch == by_commit == pretrained("owner/name").digest(seed=0)
    other = COMMIT[::-1]
    (hub / "snapshots" / COMMIT).rename(hub / "snapshots" / other)
    (hub / "refs" / "main").write_text(other)
    assert pretrained("owner/name").digest(seed=0) != by_branch
    with pytest.raises(ConfigError, match=r"model\.path"):
        pretrained("owner/other").digest(seed=0)


def test_the_digest_of_random_weights_is_that_of_what_they_are_drawn_from(tmp_path):
    before = scratch().digest(seed=0)
    assert before == scratch().digest(seed=0)
    same = scratch(attention=Attention.eager, gradient_checkpointing=True, dropout=0.1)
    assert same.digest(seed=0) == before
    others = [{"arch": "gpt2"}, {"hidden_size": 64}, {"initializer_range": 0.1}, {"tie_word_embeddings": False}]
    digests = {scratch(**other).digest(seed=0) for other in others} | {scratch().digest(seed=1), before}
    assert len(digests) == 6

    for name, text in (("a", "some words"), ("copy of a", "some words"), ("b", "other ones")):
        trained_tokenizer([text * 9], 270).save_pretrained(tmp_path / name)
    a, copy, b = (scratch(tokenizer=str(tmp_path / name)).digest(seed=0) for name in ("a", "copy of a", "b"))
    assert a == copy
    assert a not in (b, before)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 64, "n_ctx": 32}, 64),
        ({"n_ctx": 64}, 64),
        ({"max_seq_len": 64}, 64),
        ({"model_type": "bloom", "n_positions": None}, None),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        ({"max_position_embeddings": 64, "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32}}, 128),
        ({"max_position_embeddings": 64, "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 4}}, 64),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "longrope", "factor": None}}, 64),
        ({"max_position_embeddings": 64, "rope_scaling": None}, 64),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
    ],
)
def test_how_many_positions_a_configuration_has(config, limit):
    assert positions(config) == limit


def test_a_source_tells_the_positions_of_its_model(folder, hub):
    for source in (pretrained(folder), pretrained("owner/name"), scratch(max_position_embeddings=64)):
        assert source.positions() == 64
    (folder / "config.json").write_text('{"model_type": "bloom"}')
    assert pretrained(folder).positions() is None


def test_a_model_that_is_not_in_the_cache_is_refused_without_a_network(hub):
    with pytest.raises(ConfigError, match=r"model\.path"):
        pretrained("owner/other").check()
    assert pretrained("owner/name").prepare([], seed=0).build().model.config.hidden_size == 32


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_whose_configuration_cannot_be_read_is_refused(folder, content):
    (folder / "config.json").unlink()
    if content:
        (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"model\.path"):
        pretrained(folder).check()


def test_checking_a_folder_does_not_import_transformers(folder):
    code = "import sys; from orpo_exp.models.pretrained import Pretrained; "
    code += f"Pretrained(Pretrained.Config(path={str(folder)!r})).check(); "
    code += "assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
