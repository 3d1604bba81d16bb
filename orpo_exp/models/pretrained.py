"""Models and tokenizers from a local folder or the Hugging Face hub."""

import copy
import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING
from typing_extensions import override

from orpo_exp.models.attention import Attention, positions
from orpo_exp.models.base import MODELS, CausalLM, ModelConfig, ModelSource, told_about
from orpo_exp.quantized import Int8Linear, NF4Linear, QuantizedLinear, quantize_linear
from orpo_exp.schema import ConfigError, setting
from orpo_exp.versions import dtype_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

FILE_TYPES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py")  # of weights, configuration and tokenizer


class DType(Enum):
    """The type of the weights in memory, by torch's names."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Quantization(Enum):
    """How the weights of linear layers but the head lie in memory: in the type of all, or in 8 or 4 bits, to be trained
    no more."""

    none = "none"
    int8 = "int8"
    nf4 = "nf4"

    @property
    def layer(self) -> type[QuantizedLinear] | None:
        """What holds them; None: they stay where they are."""
        return {Quantization.int8: Int8Linear, Quantization.nf4: NF4Linear}.get(self)


@MODELS.register("hf")
class Pretrained(ModelSource):
    """Pretrained weights, from safetensors only; code that lies with the weights is run only where it is asked for."""

    suited_lr = 8e-6  # Hong et al. 2024, for models of 2.7B to 7B parameters

    @dataclass
    class Config(ModelConfig):
        """path: a local folder or a hub id; revision: the hub's branch, tag or commit; dtype: of the weights;
        quantization: of those that an adapter leaves as they are; resize_embeddings: give tokens that the model has
        none for an embedding; trust_remote_code: run Python code that comes with the model."""

        path: str = MISSING
        revision: str | None = None
        dtype: DType = DType.float32
        quantization: Quantization = field(default=Quantization.none, metadata={"as_before": Quantization.none})
        resize_embeddings: bool = setting(False, as_before=False)
        trust_remote_code: bool = False

    config: Config

    @property
    @override
    def quantized(self) -> bool:
        return self.config.quantization.layer is not None

    @property
    @override
    def found_at(self) -> str:
        folder = Path(self.config.path).expanduser()
        return str(folder.resolve()) if folder.is_dir() else self.config.path

    @override
    def check(self) -> None:
        """And a folder that is not there, or that holds no safetensors; and bits that nothing here can make."""
        path = self.config.path
        check_folder(path, "model.path")
        folder = Path(path).expanduser()
        if folder.is_dir() and not list(folder.glob("*.safetensors")):
            raise ConfigError("model.path", path, "a folder with *.safetensors", "Save the model with safetensors.")
        if self.quantized and importlib.util.find_spec("bitsandbytes") is None:
            allowed = "none where bitsandbytes is not installed"
            raise ConfigError("model.quantization", self.config.quantization.value, allowed, "Install bitsandbytes.")
        super().check()

    @override
    def fetch(self) -> None:
        fetch(self.config.path, "model.path", self.config.revision)

    @override
    def facts(self, hub: bool) -> Mapping[str, Any]:
        c = self.config
        folder = Path(c.path).expanduser()
        if not hub and not folder.is_dir():
            return {}
        with told_about("model.path", c.path, "a folder or hub id with a config.json"):
            if folder.is_dir():  # without transformers, whose import takes seconds
                content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            else:
                from transformers import PretrainedConfig

                content, _ = PretrainedConfig.get_config_dict(c.path, revision=c.revision)
            if not isinstance(content, dict):
                raise ValueError("its config.json holds no JSON object")
        return content

    @override
    def positions(self) -> int | None:
        return positions(self.facts(hub=True))

    @override
    def digest(self, seed: int) -> str:
        return files_digest(self.config.path, "model.path", "config.json", self.config.revision)

    @override
    def tokenizer(self, texts: Iterable[str]) -> "PreTrainedTokenizerBase":
        c = self.config
        return load_tokenizer(c.path, "model.path", c.revision, c.trust_remote_code)

    @override
    def hf_config(self, tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
        import torch
        from transformers import AutoConfig

        c = self.config
        with told_about("model.path", c.path, "a folder or hub id with a causal LM"):
            hf_config = AutoConfig.from_pretrained(
                os.path.expanduser(c.path), revision=c.revision, trust_remote_code=c.trust_remote_code
            )
        text = hf_config.get_text_config(decoder=True)
        if len(tokenizer) > text.vocab_size:
            if not c.resize_embeddings:
                allowed = f"a model with an embedding for each of its tokenizer's {len(tokenizer)} tokens"
                do = f"This one has {text.vocab_size}: fix the tokenizer's files, or set model.resize_embeddings=true."
                raise ConfigError("model.path", c.path, allowed, do)
            self.new_tokens = len(tokenizer) - text.vocab_size
            log.info("%d tokens get an embedding, at the mean of the others", self.new_tokens)
            text.vocab_size = len(tokenizer)
        setattr(hf_config, dtype_name(), getattr(torch, c.dtype.value))
        return hf_config

    @override
    def prepare(self, texts: Iterable[str], seed: int) -> CausalLM:
        """And ConfigError where bitsandbytes does not work on this device."""
        if layer := self.config.quantization.layer:
            try_on_device(layer, self.config.quantization.value)
        return super().prepare(texts, seed)

    @override
    def quantize(self, model: "PreTrainedModel", filled: bool) -> None:
        layer = self.config.quantization.layer
        if layer and not quantize_linear(model, layer, filled):
            allowed = f"none for a {type(model).__name__}, which has no linear layer but its head"
            do = "Set model.quantization=none."
            raise ConfigError("model.quantization", self.config.quantization.value, allowed, do)

    @override
    def told(self) -> AbstractContextManager[None]:
        return told_about("model.path", self.config.path, "a folder or hub id with a causal LM in safetensors")

    @override
    def model(self, hf_config: "PretrainedConfig", attention: Attention) -> "PreTrainedModel":
        import torch
        from transformers import AutoModelForCausalLM

        c = self.config
        own = copy.deepcopy(hf_config)
        own.get_text_config(decoder=True).vocab_size -= self.new_tokens
        with self.told():
            model = AutoModelForCausalLM.from_pretrained(
                os.path.expanduser(c.path),
                config=own,
                revision=c.revision,
                attn_implementation=attention.value,
                use_safetensors=True,
                trust_remote_code=c.trust_remote_code,
                **{dtype_name(): getattr(torch, c.dtype.value)},
            )
        if self.new_tokens:
            grow(model, hf_config.get_text_config(decoder=True).vocab_size)
        return model


def try_on_device(layer: type[QuantizedLinear], name: str) -> None:
    """Quantise a few numbers and multiply with them where the model will be, with ConfigError where that fails."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    linear = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.constant_(linear.weight, 0.5)  # of one number in all blocks nothing is lost
    inputs = torch.ones(1, 64, device=device, requires_grad=True)
    try:
        layer(linear, filled=True).to(device)(inputs).sum().backward()
        right = inputs.grad is not None and bool((inputs.grad - 32.0).abs().max() < 0.1)
        reason = None if right else "products come out wrong"
    except Exception as error:  # whatever a library says that lacks a kernel
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if reason:
        allowed = f"none where bitsandbytes has no working kernels, as for this {device.type}"
        raise ConfigError("model.quantization", name, allowed, f"Set model.quantization=none. It failed: {reason}")


def grow(model: "PreTrainedModel", rows: int) -> None:
    """Give the embeddings, of both ends, so many rows, the new ones at the mean of those that were there."""
    import torch

    before = [end.weight.detach() for end in (model.get_input_embeddings(), model.get_output_embeddings())]
    with torch.no_grad():
        model.resize_token_embeddings(rows, mean_resizing=False)
        for get, former in zip((model.get_input_embeddings, model.get_output_embeddings), before, strict=True):
            get().weight[len(former) :] = former.mean(0)


def files_digest(path: str, key: str, some_file: str, revision: str | None = None) -> str:
    """A hexadecimal SHA-256 of the files that a model or a tokenizer is read from.

    Of a local folder it takes their names and contents; of a hub id the id and the commit of `some_file`, which without
    a network the cache tells. ConfigError where there is no such file.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    digest = hashlib.sha256()
    folder = Path(path).expanduser()
    with told_about(key, path, "a folder that can be read, or a hub id `owner/name`"):
        if not folder.is_dir():
            commit = extract_commit_hash(cached_file(path, some_file, revision=revision), None)
            digest.update(f"{path} {commit}".encode())
        else:
            for file in sorted(file for file in folder.iterdir() if file.suffix in FILE_TYPES):
                with file.open("rb") as content:
                    digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def fetch(path: str, key: str, revision: str | None = None) -> None:
    """Bring the files of a hub id that are read here into the cache; of a local folder nothing."""
    if Path(path).expanduser().is_dir():
        return
    from huggingface_hub import snapshot_download

    with told_about(key, path, "a folder, or a hub id `owner/name` that can be reached or lies in the cache"):
        snapshot_download(path, revision=revision, allow_patterns=[f"*{kind}" for kind in FILE_TYPES])


def check_folder(path: str, key: str) -> None:
    """Refuse what looks like a local path and does not exist; `name` and `owner/name` may be hub ids."""
    local_form = path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith("/")
    if local_form and not Path(path).expanduser().is_dir():
        raise ConfigError(key, path, "a folder that exists, or a hub id `owner/name`", "Check the path.")


def load_tokenizer(
    path: str, key: str, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """A fast tokenizer with an EOS token from a folder or the hub; ConfigError where it has none."""
    from transformers import AutoTokenizer

    check_folder(path, key)
    with told_about(key, path, "a folder or hub id with a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            os.path.expanduser(path), revision=revision, trust_remote_code=trust_remote_code
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(key, path, "a tokenizer with an EOS token", "Set eos_token in its tokenizer_config.json.")
    return tokenizer
