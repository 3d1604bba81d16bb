"""Data parallelism with whole replicas: ColossalAI's TorchDDPPlugin."""

import hashlib
import logging
import math
import resource
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from orpo_exp.plugins.base import PLUGINS, Objective, Plugin, PluginConfig, Precision
from orpo_exp.plugins.cpu import use_completed_cpu_accelerator
from orpo_exp.plugins.processes import Place, join_process_group
from orpo_exp.plugins.rng import rng_state, set_rng_state
from orpo_exp.scoring import captured_hidden, pair_logps
from orpo_exp.types import Batch, PairLogps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLICY, OPTIMIZER, REFERENCE = "policy.safetensors", "optimizer.safetensors", "reference.safetensors"


@PLUGINS.register("ddp")
class DDP(Plugin):
    """Each rank holds the whole model; gradients are summed over ranks once per step.

    Runs on CPUs (gloo) and GPUs (nccl). bf16 is autocast: weights, gradients and updates stay float32.
    """

    @dataclass
    class Config(PluginConfig):
        """Nothing of its own."""

    def __init__(self, config: PluginConfig, place: Place) -> None:
        super().__init__(config, place)
        # bitsandbytes, which comes with ColossalAI, warns of kernels that nothing here uses
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        if torch.cuda.is_available():
            self.device = torch.device("cuda", place.local_rank)
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
            use_completed_cpu_accelerator()
        join_process_group(place, "nccl" if self.device.type == "cuda" else "gloo")
        with warnings.catch_warnings(action="ignore"):  # of optional packages that nothing here uses
            from colossalai.booster import Booster
            from colossalai.booster.plugin import TorchDDPPlugin

        self.booster: Any = Booster(plugin=TorchDDPPlugin(broadcast_buffers=False, gradient_as_bucket_view=True))

    @property
    def data_parallel_rank(self) -> int:
        """Every rank is a replica."""
        return self.rank

    @property
    def data_parallel_size(self) -> int:
        """Every rank is a replica."""
        return self.world_size

    def prepare(
        self,
        model: "PreTrainedModel",
        finish_logits: Callable[[Tensor], Tensor],
        optimizer: Optimizer,
        max_grad_norm: float | None,
    ) -> None:
        """See Plugin."""
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of an argument ColossalAI always gives
            self.model, self.optimizer, *_ = self.booster.boost(model, optimizer)
        self.policy: PreTrainedModel = self.model.unwrap()
        self.finish_logits = finish_logits
        self._settle_buckets()

    def forward_backward(self, micro_batches: Sequence[Batch], objective: Objective) -> None:
        """See Plugin. Gradients travel with the last micro-batch alone."""
        self.policy.train()
        last = len(micro_batches) - 1
        for number, batch in enumerate(micro_batches):
            synchronised = nullcontext() if number == last else self.booster.no_sync(self.model, self.optimizer)
            with synchronised:
                loss = objective(number, self._logps(batch, self.model, self.policy))
                # DDP averages over ranks; the objective's shares are to be summed
                self.booster.backward(loss * self.data_parallel_size, self.optimizer)

    def step(self, lr: float) -> float:
        """See Plugin."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def score(self, micro_batches: Sequence[Batch], reference: bool = False) -> PairLogps:
        """See Plugin."""
        model = self.reference if reference else self.policy
        model.eval()
        return PairLogps.concatenate([self._logps(batch, model, model) for batch in micro_batches])

    def hold_reference(self, model: "PreTrainedModel") -> None:
        """See Plugin."""
        self.reference = model.to(self.device).requires_grad_(False)

    @torch.no_grad()
    def sync_reference(self, mix: float) -> None:
        """See Plugin."""
        for held, current in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
            held.lerp_(current, mix)

    def weights_digest(self) -> str:
        """See Plugin."""
        digest = hashlib.sha256()
        for name, parameter in self.policy.named_parameters():
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def generate(self, prompts: Sequence[Tensor], max_new_tokens: int, eos: int) -> list[list[int]]:
        """See Plugin. Prompt by prompt: these are few, and no padding can disturb them."""
        from transformers import GenerationConfig
        from transformers.utils import logging as transformers_logging

        self.policy.eval()
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=eos, use_cache=True
        )
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # it would tell of every sampling default that greedy search ignores
        answers: list[list[int]] = []
        for prompt in prompts:
            ids = prompt[None].long().to(self.device)
            with self._autocast():
                out = self.policy.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
            answer: list[int] = out[0, ids.shape[1] :].tolist()
            answers.append(answer[:-1] if answer[-1:] == [eos] else answer)
        transformers_logging.set_verbosity(verbosity)
        return answers

    def save_weights(self, folder: Path) -> None:
        """See Plugin."""
        if self.is_main:
            self.policy.save_pretrained(folder, safe_serialization=True)
        self.barrier()

    def save(self, folder: Path, reference: bool) -> list[str]:
        """See Plugin. All ranks hold the same weights: the main one writes them."""
        from safetensors.torch import save_file, save_model

        own = f"rng-{self.rank}.safetensors"
        save_file(rng_state(self.device), folder / own)
        if not self.is_main:
            return [own]
        save_model(self.policy, str(folder / POLICY))  # knows of tied weights
        save_file(optimizer_tensors(self.optimizer.optim), folder / OPTIMIZER)
        if reference:
            save_model(self.reference, str(folder / REFERENCE))
        return [own, POLICY, OPTIMIZER, *([REFERENCE] if reference else [])]

    def load(self, folder: Path, reference: bool) -> None:
        """See Plugin."""
        from safetensors.torch import load_file, load_model

        load_model(self.policy, folder / POLICY)
        load_optimizer_tensors(self.optimizer.optim, load_file(folder / OPTIMIZER))
        if reference:
            load_model(self.reference, folder / REFERENCE)
        own = folder / f"rng-{self.rank}.safetensors"
        if own.exists():
            set_rng_state(load_file(own), self.device)

    def sum(self, numbers: Tensor) -> Tensor:
        """See Plugin."""
        total = numbers.to(self.device, torch.float64)
        dist.all_reduce(total)
        return total.cpu()

    def gather(self, values: Tensor) -> list[Tensor]:
        """See Plugin."""
        values = values.to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(values)], device=self.device))
        longest = max(int(size) for size in sizes)
        padded = torch.cat([values, values.new_zeros(longest - len(values))])
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded)
        return [part[: int(size)].cpu() for part, size in zip(gathered, sizes, strict=True)]

    def exchange(self, text: str) -> list[str]:
        """See Plugin."""
        said = self.gather(torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8))
        return [bytes(part.tolist()).decode("utf-8") for part in said]

    def barrier(self) -> None:
        """See Plugin."""
        dist.barrier()

    def peak_memory_bytes(self) -> int:
        """See Plugin."""
        if self.device.type == "cuda":
            own = torch.cuda.max_memory_allocated(self.device)
        else:
            own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        largest = torch.tensor(own, dtype=torch.int64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def close(self) -> None:
        """See Plugin."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _settle_buckets(self) -> None:
        """Run one backward pass whose gradient is zero.

        DDP lays its gradients out anew after the first one, and with three ranks or more the layout decides the order
        in which they are added: without this, the first step of a resumed run would differ in its last bits.
        """
        if self.world_size > 1:
            ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
            with self._autocast():
                nothing = self.model(input_ids=ids, use_cache=False).logits.float().sum() * 0.0
            self.booster.backward(nothing, self.optimizer)
            self.optimizer.zero_grad()

    def _logps(self, batch: Batch, model: nn.Module, inner: "PreTrainedModel") -> PairLogps:
        """Score a batch; `model` is called, `inner` is the Hugging Face model inside it."""
        inputs = {name: tensor.to(self.device) for name, tensor in batch.inputs.items()}
        output_embeddings = inner.get_output_embeddings()
        with self._autocast(), captured_hidden(output_embeddings) as hidden:
            model(**inputs, use_cache=False)
        with self._autocast():
            return pair_logps(hidden[0], lambda states: self.finish_logits(output_embeddings(states)), batch.score)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision is Precision.bf16)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as "<number of the parameter>/<name>": tensor. Its settings come from the configuration."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{name}": v.contiguous() for i, of in state.items() for name, v in of.items() if v is not None}


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` took from one like it."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value.clone()  # a file read by mapping could not be removed for good
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
