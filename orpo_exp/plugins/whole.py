"""Parts for plugins whose ranks each hold a whole model: scoring, sampling, hashing, saving it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from orpo_exp.plugins.base import Objective
from orpo_exp.plugins.pieces import Held, Piece, hash_of, save_config
from orpo_exp.plugins.precision import LossScale, autocast, buffers_kept
from orpo_exp.plugins.ranks import Ranks
from orpo_exp.plugins.state import load_optimizer_tensors, load_own, optimizer_tensors, save_own
from orpo_exp.quantized import parameter_count
from orpo_exp.scoring import captured_hidden, head_of, pair_logps
from orpo_exp.types import Batch, Builder, BuiltModel, LossOutput, PairLogps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLICY, OPTIMIZER, HELD = "policy.safetensors", "optimizer.safetensors", "reference.safetensors"


class WholeModel:
    """A causal LM that lies whole on this rank's device.

    built: the model, before anything forbids it gradients: what requires one is `trained`, and alone moves and is
    saved; the rest is as it was built. dtype: what matrix products are computed in.
    """

    def __init__(self, built: BuiltModel, device: torch.device, dtype: torch.dtype) -> None:
        self.built, self.device, self.dtype = built, device, dtype
        self.model: PreTrainedModel = built.model.to(device)
        parameters = dict(self.model.named_parameters())
        self.trained: dict[str, Tensor] = {name: of for name, of in parameters.items() if of.requires_grad}
        self.all_trained = len(self.trained) == len(parameters)

    def logps(self, batch: Batch, wrapper: nn.Module | None = None) -> PairLogps:
        """The log-probabilities of a batch. `wrapper`: what is called in the model's place, with the model inside."""
        head = self.model.get_output_embeddings()
        with self.autocast(), captured_hidden(head) as hidden:
            (wrapper or self.model)(**batch.to_model(self.device), use_cache=False)
        with self.autocast():  # (rows, columns, hidden) and the index -> (scored tokens,) by span
            return pair_logps(hidden[0], head_of(head, self.built.finish_logits), batch.score)

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
        for name, own in self.trained.items():
            own.lerp_(other.trained[name], mix)

    @property
    def weights(self) -> Iterable[Tensor]:
        """What it takes memory for."""
        return self.model.parameters()

    @property
    def held(self) -> list[Held]:
        """What is trained, as pieces.py has it."""
        return [Held(name, Piece.whole(of.shape), of) for name, of in self.trained.items()]

    def save(self, path: Path) -> None:
        """Write what is trained; of a whole model tied weights once, and its buffers."""
        from safetensors.torch import save_file, save_model

        if self.all_trained:
            save_model(self.model, str(path))
        else:
            save_file({name: of.detach().contiguous() for name, of in self.trained.items()}, path)

    def load(self, path: Path) -> None:
        """Take the weights of a `save`."""
        from safetensors.torch import load_file, load_model

        if self.all_trained:
            load_model(self.model, path)
            return
        found = load_file(path)
        assert found.keys() == self.trained.keys(), "the settings, and so what is trained, are those of the checkpoint"
        for name, of in self.trained.items():
            of.data.copy_(found[name])

    def digest(self) -> str:
        """A hexadecimal hash of the weights."""
        return hash_of(self.model.named_parameters())

    def save_config(self, folder: Path) -> None:
        """Write config.json in Hugging Face's form."""
        save_config(self.model, folder)

    def describe(self) -> str:
        """Class and size, for people."""
        trained = sum(p.numel() for p in self.trained.values())
        return described(self.model, parameter_count(self.model), trained)

    def save_pretrained(self, folder: Path) -> None:
        """Write it as Hugging Face's libraries load it."""
        self.built.save(self.model, folder)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the model computes: weights stay what they are."""
        return autocast(self.device, self.dtype)


class Beginning(WholeModel):
    """A whole model as it is now, held for later without its weights being there twice.

    What is trained is exchanged for a copy of what it was, made here, while it scores.
    """

    def __init__(self, policy: WholeModel) -> None:
        super().__init__(policy.built, policy.device, policy.dtype)
        self.parameters, self.all_trained = self.trained, False
        self.trained = {name: of.detach().clone() for name, of in self.parameters.items()}

    @property
    @override
    def weights(self) -> Iterable[Tensor]:
        return self.trained.values()

    @override
    def score(self, micro_batches: Sequence[Batch]) -> PairLogps:
        with exchanged(self.parameters.values(), self.trained.values()):
            return super().score(micro_batches)


@contextmanager
def exchanged(parameters: Iterable[Tensor], others: Iterable[Tensor]) -> Iterator[None]:
    """Inside this block, parameters have the numbers of as many others."""
    now = [(of, of.data) for of in parameters]
    try:
        for (of, _), other in zip(now, others, strict=True):
            of.data = other
        yield
    finally:
        for of, data in now:
            of.data = data


def described(model: nn.Module, count: int, trained: int) -> str:
    """A model's class, how many parameters it has, and how many of them are trained if not all, for people."""
    of = f"{type(model).__name__}, {count:,} parameters"
    return of if trained == count else f"{of}, {trained:,} of them trained ({trained / count:.2%})"


def read_by_main(build: Builder, ranks: Ranks) -> BuiltModel:
    """The model on the CPU: with its weights on the main rank, empty on the others. What the main rank refuses is
    raised on all."""
    read: list[BuiltModel] = []
    ranks.from_main(lambda: read.append(build.whole()))
    built = read[0] if read else build.empty()
    names = [name for of in (built.model.named_parameters(), built.model.named_buffers()) for name, _ in of]
    assert len(set(ranks.exchange(" ".join(names)))) == 1, "an empty model has the tensors of the whole one"
    return built


def built_once(build: Builder, ranks: Ranks, dtype: torch.dtype | None = None) -> BuiltModel:
    """The model on this rank's device, its weights read by the main rank alone and sent to the others.

    dtype: what weights are brought to; None: they keep theirs.
    """
    built = read_by_main(build, ranks)
    with buffers_kept(built.model):
        model = built.model.to(ranks.device, dtype)
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.data, 0)
    return built


def accumulate(
    policy: WholeModel,
    wrapper: nn.Module,
    micro_batches: Sequence[Batch],
    objective: Objective,
    backward: Callable[[Tensor], None],
    quiet: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[LossOutput]:
    """Forward and backward passes of one global step, micro-batch by micro-batch; their outputs.

    quiet: the context in which gradients do not travel yet; they do with the last micro-batch alone.
    """
    policy.model.train()
    outputs: list[LossOutput] = []
    last = len(micro_batches) - 1
    for number, batch in enumerate(micro_batches):
        with nullcontext() if number == last else quiet():
            output = objective(number, policy.logps(batch, wrapper))
            backward(output.loss)
        outputs.append(output)
    return outputs


def save_whole(
    folder: Path,
    ranks: Ranks,
    policy: WholeModel,
    optimizer: Optimizer,
    held: WholeModel | None,
    loss_scale: LossScale,
) -> list[str]:
    """Write weights, optimizer and what each rank has of its own; the names of this rank's files. All ranks hold the
    same weights: the main one writes them."""
    from safetensors.torch import save_file

    own = save_own(folder, ranks, loss_scale)
    if not ranks.is_main:
        return [own]
    policy.save(folder / POLICY)
    save_file(optimizer_tensors(optimizer), folder / OPTIMIZER)
    if held is not None:
        held.save(folder / HELD)
    return [own, POLICY, OPTIMIZER, *([HELD] if held is not None else [])]


def load_whole(
    folder: Path,
    ranks: Ranks,
    policy: WholeModel,
    optimizer: Optimizer,
    held: WholeModel | None,
    loss_scale: LossScale,
) -> None:
    """Go on from a `save_whole`, also of another number of ranks."""
    from safetensors.torch import load_file

    policy.load(folder / POLICY)
    load_optimizer_tensors(optimizer, load_file(folder / OPTIMIZER))
    if held is not None:
        held.load(folder / HELD)
    load_own(folder, ranks, loss_scale)
