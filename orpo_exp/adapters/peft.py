"""Adapters of peft's: put into a model, and written as peft or transformers load them."""

import copy
import dataclasses
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from orpo_exp.adapters.base import Adapter
from orpo_exp.quantized import QuantizedLinear
from orpo_exp.schema import ConfigError
from orpo_exp.types import Builder, BuiltModel

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

NAME = "default"  # of the adapter inside the model, peft's own
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names in peft's files


class PeftAdapter(Adapter):
    """What the kinds share. Its own numbers are float32, whatever the model's are; those of whole modules are of its
    type. Its rate is ten times that of all weights (Schulman et al. 2025, "LoRA Without Regret")."""

    config: Any
    lr_factor = 10.0

    @abstractmethod
    def peft_config(self, model: "PreTrainedModel", drawn: bool) -> "PeftConfig":
        """Its settings for a model. drawn: whether its weights are of use, or will be written over."""

    def named(self) -> Mapping[str, Sequence[str]]:
        """Names of modules that must be there, by the setting that names them."""
        return {}

    def fill(self, model: Any) -> None:
        """Give it the weights that it starts from, where they are not drawn."""
        return None

    @override
    def check(self, base: str | None, quantized: bool) -> None:
        if base is None and not self.config.merge:
            allowed = "true with a model that nobody can load: it is drawn at random for this run"
            raise ConfigError("adapter.merge", False, allowed, "Set adapter.merge=true.")

    @override
    def describe(self, folder: Path) -> None:
        write_settings(self.settings, folder)

    @override
    def on(self, build: Builder, base: str | None, seed: int) -> Builder:
        def put_into(built: BuiltModel, drawn: bool) -> BuiltModel:
            from peft import inject_adapter_in_model

            modules = [name for name, _ in built.model.named_modules()]
            for key, names in self.named().items():
                for name in names:
                    if not any(f".{module}".endswith(f".{name}") for module in modules):
                        last = sorted({module.rpartition(".")[2] for module in modules} - {""})
                        allowed = f"names of the model's modules: {', '.join(of for of in last if not of.isdigit())}"
                        raise ConfigError(f"adapter.{key}", name, allowed, "Correct the name.")
            settings = self.peft_config(built.model, drawn)
            settings.base_model_name_or_path = base
            refuse_whole_quantized(built.model, settings)
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # also where it has not
                torch.manual_seed(seed)
                try:
                    inject_adapter_in_model(settings, built.model, NAME)
                except ValueError as error:  # peft's, about what was asked for
                    allowed = "what peft can put into this model"
                    raise ConfigError("adapter", type(self).__name__, allowed, f"It says: {error}") from error
            if drawn:
                self.fill(built.model)
            for name, of in built.model.named_parameters():
                if of.requires_grad and "modules_to_save" not in name.split("."):  # these meet the others' activations
                    of.data = of.data.float()
            self.settings = settings
            alone = partial(save_adapter, embeddings=built.new_tokens > 0)
            return dataclasses.replace(built, save=save_merged if self.config.merge else alone)

        return Builder(lambda: put_into(build.whole(), True), lambda: put_into(build.empty(), False))


def refuse_whole_quantized(model: "PreTrainedModel", settings: "PeftConfig") -> None:
    """Refuse with ConfigError a module that is to be trained whole and holds its weights in few bits."""
    whole = getattr(settings, "modules_to_save", None) or ()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear) and any(f".{name}".endswith(f".{of}") for of in whole):
            allowed = "modules whose weights are not in 8 or 4 bits, which cannot be trained"
            raise ConfigError("adapter.whole", name, allowed, "Leave it out, or set model.quantization=none.")


def save_adapter(model: "PreTrainedModel", folder: Path, embeddings: bool) -> None:
    """Write the adapter alone in peft's form. embeddings: whether those of all tokens go with it."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    held: Any = model
    weights = get_peft_model_state_dict(held, adapter_name=NAME, save_embedding_layers=embeddings)
    # tied ones are there under each of their names
    save_file({f"{PREFIX}{name}": of.detach().cpu().clone() for name, of in weights.items()}, folder / WEIGHTS)
    write_settings(held.peft_config[NAME], folder)


def write_settings(settings: "PeftConfig", folder: Path) -> None:
    """Write them as peft reads them."""
    settings = copy.copy(settings)
    settings.inference_mode = True
    settings.save_pretrained(str(folder))


def peft_name(name: str) -> str:
    """The name in peft's files of a tensor that is trained, from that in the model."""
    for inside, outside in ((f"lora_magnitude_vector.{NAME}.weight", "lora_magnitude_vector"), (f".{NAME}", "")):
        name = name.replace(inside, outside)
    return f"{PREFIX}{name.replace('modules_to_save.', '')}"


def save_merged(model: "PreTrainedModel", folder: Path) -> None:
    """Write the whole model in Hugging Face's form, the adapter added in; it stays as it is itself."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    changed: dict[str, Callable[[], torch.nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            changed[name] = lambda layer=module: _merged(layer)  # type: ignore[misc]
        elif isinstance(module, ModulesToSaveWrapper):
            changed[name] = lambda wrapper=module: wrapper.modules_to_save[NAME]  # type: ignore[misc]
        elif isinstance(module, QuantizedLinear) and name.rpartition(".")[0] not in changed:
            changed[name] = module.in_full
    weights: dict[str, Tensor] = {
        name: of
        for name, of in model.state_dict().items()
        if not any(name.startswith(f"{module}.") for module in changed)
    }
    for name, make in changed.items():
        weights |= {f"{name}.{key}": of for key, of in make().state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)


def _merged(layer: Any) -> torch.nn.Module:
    """The layer without its adapter, which is added in; a copy."""
    layer = copy.deepcopy(layer)
    if isinstance(layer.base_layer, QuantizedLinear):
        layer.base_layer = layer.base_layer.in_full()  # few bits would not hold the sum
    layer.merge(safe_merge=True)
    whole: torch.nn.Module = layer.get_base_layer()
    return whole
