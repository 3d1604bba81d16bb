"""Parts for plugins whose ranks each hold a whole model: scoring, sampling, hashing, saving it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from orpo_exp.plugins.ranks import Ranks
from orpo_exp.plugins.rng import rng_state, set_rng_state
from orpo_exp.plugins.state import load_optimizer_tensors, optimizer_tensors
from orpo_exp.scoring import captured_hidden, pair_logps
from orpo_exp.types import Batch, BuiltModel, PairLogps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLICY, OPTIMIZER, HELD = "policy.safetensors", "optimizer.safetensors", "reference.safetensors"


class WholeModel:
    """A causal LM that lies whole on this rank's device. `dtype`: what matrix products are computed in."""

    def __init__(self, built: BuiltModel, device: torch.device, dtype: torch.dtype) -> None:
        self.model: PreTrainedModel = built.model.to(device)
        self.finish_logits, self.device, self.dtype = built.finish_logits, device, dtype

    def logps(self, batch: Batch, wrapper: nn.Module | None = None) -> PairLogps:
        """The log-probabilities of a batch. `wrapper`: what is called in the model's place, with the model inside."""
        inputs = {name: tensor.to(self.device) for name, tensor in batch.inputs.items()}
        head = self.model.get_output_embeddings()
        with self.autocast(), captured_hidden(head) as hidden:
            (wrapper or self.model)(**inputs, use_cache=False)
        with self.autocast():  # (rows, columns, hidden) and the index -> (scored tokens,) by span
            return pair_logps(hidden[0], lambda states: self.finish_logits(head(states)), batch.score)

    @torch.no_grad()
    def score(self, micro_batches: Sequence[Batch]) -> PairLogps:
        """The log-probabilities of all pairs without gradient, micro-batch after micro-batch."""
        self.model.eval()
        return PairLogps.concatenate([self.logps(batch) for batch in micro_batches])

    @torch.no_grad()
    def generate(self, prompts: Sequence[Tensor], max_new_tokens: int, eos: int) -> list[list[int]]:
        """Greedy continuations, prompt by prompt: these are few, and no padding can disturb them."""
        from transformers import GenerationConfig
        from transformers.utils import logging as transformers_logging

        self.model.eval()
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=eos, use_cache=True
        )
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # it would tell of every sampling default that greedy search ignores
        answers: list[list[int]] = []
        try:
            for prompt in prompts:
                ids = prompt[None].long().to(self.device)
                with self.autocast():
                    out = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
                answer: list[int] = out[0, ids.shape[1] :].tolist()
                answers.append(answer[:-1] if answer[-1:] == [eos] else answer)
        finally:
            transformers_logging.set_verbosity(verbosity)
        return answers

    @torch.no_grad()
    def move_towards(self, other: "WholeModel", mix: float) -> None:
        """weights = mix * other's + (1 - mix) * own."""
        for own, current in zip(self.model.parameters(), other.model.parameters(), strict=True):
            own.lerp_(current, mix)

    def digest(self) -> str:
        """A hexadecimal hash of the weights."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """Class and size, for people."""
        return f"{type(self.model).__name__}, {sum(p.numel() for p in self.model.parameters()):,} parameters"

    def autocast(self) -> torch.autocast:
        """The context in which the model computes: weights stay float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def save_whole(
    folder: Path, ranks: Ranks, policy: WholeModel, optimizer: Optimizer, held: WholeModel | None
) -> list[str]:
    """Write weights, optimizer and each rank's generators; the names of this rank's files. All ranks hold the same
    weights: the main one writes them."""
    from safetensors.torch import save_file, save_model

    own = f"rng-{ranks.rank}.safetensors"
    save_file(rng_state(ranks.device), folder / own)
    if not ranks.is_main:
        return [own]
    save_model(policy.model, str(folder / POLICY))  # knows of tied weights
    save_file(optimizer_tensors(optimizer), folder / OPTIMIZER)
    if held is not None:
        save_model(held.model, str(folder / HELD))
    return [own, POLICY, OPTIMIZER, *([HELD] if held is not None else [])]


def load_whole(folder: Path, ranks: Ranks, policy: WholeModel, optimizer: Optimizer, held: WholeModel | None) -> None:
    """Go on from a `save_whole`, also of another number of ranks."""
    from safetensors.torch import load_file, load_model

    load_model(policy.model, folder / POLICY)
    load_optimizer_tensors(optimizer, load_file(folder / OPTIMIZER))
    if held is not None:
        load_model(held.model, folder / HELD)
    own = folder / f"rng-{ranks.rank}.safetensors"
    if own.exists():
        set_rng_state(load_file(own), ranks.device)
