"""An adapter that was trained before, as the start."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING
from typing_extensions import override

from orpo_exp.adapters.base import ADAPTERS, AdapterConfig
from orpo_exp.adapters.lora import Init
from orpo_exp.adapters.peft import NAME, PREFIX, SETTINGS, WEIGHTS, PeftAdapter
from orpo_exp.schema import ConfigError, setting

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


@ADAPTERS.register("existing")
class Existing(PeftAdapter):
    """Goes on with it, whatever kind of peft's it is that lies beside weights."""

    @dataclass
    class Config(AdapterConfig):
        """path: the folder that peft, or a run, wrote. merge: whether model/ holds the whole model, it
        added in."""

        path: str = MISSING
        merge: bool = setting(False, affects_numbers=False)

    config: Config

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(self.config.path).expanduser()

    @property
    @override
    def dropout(self) -> float:
        return float(self._found().get("lora_dropout", 0.0))

    @override
    def check(self, base: str | None, quantized: bool) -> None:
        if not all((self.folder / name).is_file() for name in (SETTINGS, WEIGHTS)):
            allowed = f"a folder with {SETTINGS} and {WEIGHTS}"
            raise ConfigError("adapter.path", self.config.path, allowed, "Save the adapter with safetensors.")
        if quantized and self._found().get("init_lora_weights") in [of.value for of in Init if of.rewrites]:
            allowed = "an adapter that did not begin by a part of the weights, beside those in 8 or 4 bits"
            raise ConfigError("adapter.path", self.config.path, allowed, "Set model.quantization=none.")
        super().check(base, quantized)

    def _found(self) -> dict[str, Any]:
        """Its settings, as they lie there."""
        found: dict[str, Any] = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        return found

    @override
    def digest(self) -> str:
        contents = [hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in (SETTINGS, WEIGHTS)]
        return hashlib.sha256(" ".join(contents).encode()).hexdigest()

    @override
    def peft_config(self, model: "PreTrainedModel", drawn: bool) -> "PeftConfig":
        from peft import PeftConfig

        config = PeftConfig.from_pretrained(str(self.folder))
        config.inference_mode = False
        return config

    @override
    def fill(self, model: Any) -> None:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        weights = {name.removeprefix(PREFIX): of for name, of in load_file(self.folder / WEIGHTS).items()}
        told: Any = set_peft_model_state_dict(model, weights, adapter_name=NAME)  # type: ignore[func-returns-value]
        lacking = [name for name in told.missing_keys if model.get_parameter(name).requires_grad]
        if told.unexpected_keys or lacking:
            allowed = "an adapter of a model like this one"
            do = f"Of what it holds and what it needs, {[*told.unexpected_keys, *lacking][:3]} do not fit."
            raise ConfigError("adapter.path", self.config.path, allowed, do)
