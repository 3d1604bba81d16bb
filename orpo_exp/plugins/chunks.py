"""A causal LM whose parameters lie in chunks, of which each rank keeps an equal range: ColossalAI's Gemini."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orpo_exp.plugins.colossal import unannounced
from orpo_exp.plugins.greedy import greedy
from orpo_exp.plugins.pieces import Held, Piece, digest, gathered, save_config
from orpo_exp.plugins.ranks import Ranks
from orpo_exp.scoring import captured_hidden, pair_logps
from orpo_exp.types import Batch, PairLogps


class ChunkedModel:
    """ColossalAI's GeminiDDP as a Scorer (see base.py).

    Chunks are gathered for the operations that use their parameters, inside `gathering` alone, and by all ranks
    together: these run equally many passes through the model.
    """

    def __init__(self, wrapper: Any, finish_logits: Callable[[Tensor], Tensor], ranks: Ranks) -> None:
        self.wrapper, self.finish_logits, self.ranks = wrapper, finish_logits, ranks
        self.model: Any = wrapper.unwrap()
        self.head: Any = self.model.get_output_embeddings()
        self.manager: Any = wrapper.gemini_manager
        # It remembers by an operation's number which chunks can go; of how many operations a pass consists varies here
        self.manager._get_layout_info = MethodType(type(self.manager)._get_layout_info.__wrapped__, self.manager)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Inside, an operation finds its parameters whole. What is gathered is let go of by the backward pass; at the
        end of the block where there is none."""
        from colossalai.tensor.param_op_hook import ColoParamOpHookManager

        if self.manager._mem_stats_collector:  # placement auto: which operation comes next
            self.manager._mem_stats_collector._step_idx = 0
        with unannounced(), ColoParamOpHookManager.use_hooks(*self.wrapper.hooks):
            yield
        if not torch.is_grad_enabled():
            self.wrapper._post_forward()
            self.manager.reset_attributes()
            if self.manager.is_warmup():
                self.manager.compute_list.clear()  # in which placement auto is to find a training pass

    def hidden(self, inputs: Mapping[str, Any]) -> Tensor:
        """(sequences, positions, hidden) states that go into the head. inputs: what the model is called with."""
        # before it has trained, the wrapper refuses a pass without gradient under placement auto
        call = self.wrapper if torch.is_grad_enabled() else self.model
        with captured_hidden(self.head) as hidden:
            call(**inputs, use_cache=False)
        return plain(hidden[0])

    def logits(self, states: Tensor) -> Tensor:
        """(n, hidden) -> (n, vocabulary)."""
        return plain(self.finish_logits(self.head(states)))

    def logps(self, batch: Batch) -> PairLogps:
        """The log-probabilities of a batch."""
        with self.gathering():
            return pair_logps(self.hidden(batch.to_model(self.ranks.device)), self.logits, batch.score)

    @torch.no_grad()
    def score(self, micro_batches: Sequence[Batch]) -> PairLogps:
        """The log-probabilities of all pairs without gradient, micro-batch after micro-batch."""
        self.model.eval()
        return PairLogps.concatenate([self.logps(batch) for batch in micro_batches])

    @torch.no_grad()
    def generate(self, prompts: Sequence[Tensor], max_new_tokens: int, eos: int) -> list[list[int]]:
        """Greedy continuations; the main rank's tokens are everybody's."""
        self.model.eval()

        def following(texts: Sequence[Tensor]) -> list[int]:
            tokens = []
            for text in texts:
                with self.gathering():
                    hidden = self.hidden({"input_ids": text[None].to(self.ranks.device)})
                    tokens.append(int(self.logits(hidden[0, -1:]).argmax()))
            return [int(token) for token in self.ranks.exchange(" ".join(map(str, tokens)))[0].split()]

        return greedy(prompts, max_new_tokens, eos, following)

    @torch.no_grad()
    def move_towards(self, other: Self, mix: float) -> None:
        """weights = mix * other's + (1 - mix) * own, where these lie in chunks of the same sizes."""
        for own, current in zip(self.held(), other.held(), strict=True):
            own.tensor.lerp_(current.tensor.to(own.tensor), mix)

    @property
    def chunks(self) -> Sequence[Any]:
        """Those of the weights, in the order of the parameters."""
        chunks: Sequence[Any] = self.wrapper.chunk_manager.get_chunks(self.model.parameters())
        return chunks

    def fill(self, weights: dict[str, Tensor]) -> None:
        """Give every rank its ranges of the weights that the main rank has; the others know shapes. It is emptied."""
        parts = {part.name: part for part in self.held()}
        for name in list(weights):
            source = weights.pop(name)
            whole = torch.empty(source.shape, dtype=self.wrapper.mixed_precision, device=self.ranks.device)
            if self.ranks.is_main:
                whole.copy_(source)
            dist.broadcast(whole, 0)
            if part := parts.get(name):
                part.tensor.copy_(part.piece.cut(whole))
        self.follow()

    def follow(self) -> None:
        """Bring the weights up to date with their float32 copies, where there are any."""
        for chunk in (chunk for chunk in self.chunks if chunk.paired_chunk):
            place = self.wrapper.grads_device[chunk.get_tensors()[0]]  # where the copies are
            self.wrapper.chunk_manager.move_chunk(chunk, place)
            chunk.optim_update()

    def held(self) -> list[Held]:
        """This rank's ranges of the weights, in their float32 copies where there are any: weights that are updated in
        the host's memory follow these when they are next used."""
        held = []
        for name, parameter in self.model.named_parameters():
            chunk = self.wrapper.chunk_manager.get_chunk(parameter)
            piece = piece_in(chunk.shard_begin, chunk.shard_end, chunk.tensors_info[parameter].offset, parameter.shape)
            if piece.numel:
                first = chunk.tensors_info[parameter].offset + piece.start - chunk.shard_begin
                numbers = (chunk.paired_chunk or chunk).payload[first : first + piece.numel]
                held.append(Held(name, piece, numbers))
        return held

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Every whole weight with its name, on the main rank; see `gathered`."""
        return ((name, of.to(self.wrapper.mixed_precision)) for name, of in gathered(self.ranks, self.held()))

    def digest(self) -> str:
        """A hexadecimal hash of the whole weights."""
        return digest(self.ranks, self.whole())

    def save_config(self, folder: Path) -> None:
        """Write config.json in Hugging Face's form."""
        save_config(self.model, folder)

    def describe(self) -> str:
        """Class and size, for people."""
        return f"{type(self.model).__name__}, {sum(p.numel() for p in self.model.parameters()):,} parameters"


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights by name, as they are before Gemini lays them into chunks."""
    return {name: parameter.data for name, parameter in model.named_parameters()}


def piece_in(first: int, last: int, offset: int, shape: Sequence[int]) -> Piece:
    """What numbers `first` to `last` of a chunk have of a parameter that begins at `offset` in it."""
    size = torch.Size(shape).numel()
    start, stop = (min(max(int(bound) - offset, 0), size) for bound in (first, last))  # a chunk's are NumPy's
    return Piece.whole(shape).range(start, stop)


def plain(tensor: Tensor) -> Tensor:
    """The same tensor as torch's own class. ColossalAI's, that of all that is computed from parameters, gives for an
    in-place operation a copy."""
    with torch._C.DisableTorchFunction():
        return tensor.as_subclass(Tensor)
