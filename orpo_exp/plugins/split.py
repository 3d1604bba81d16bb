"""A causal LM that is split over the ranks of its replica: by columns and rows of its matrices, by stages."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from orpo_exp.plugins.architectures import ARCHITECTURES
from orpo_exp.plugins.colossal import unannounced
from orpo_exp.plugins.cutting import held_parts
from orpo_exp.plugins.greedy import greedy
from orpo_exp.plugins.pieces import Held, digest, gathered, save_config
from orpo_exp.plugins.pipeline import ragged_schedule, run_pipeline
from orpo_exp.plugins.ranks import Ranks
from orpo_exp.plugins.split_vocabulary import SplitVocabulary
from orpo_exp.plugins.whole import described, exchanged
from orpo_exp.scoring import WHOLE, Vocabulary, by_span, captured_hidden, head_of, pair_logps
from orpo_exp.types import Batch, BuiltModel, PairLogps


@dataclass(frozen=True)
class Where:
    """Where this rank stands in its replica."""

    stages: int
    stage: int
    tensor_group: dist.ProcessGroup
    sequence_group: dist.ProcessGroup
    pipeline_group: dist.ProcessGroup

    @property
    def last(self) -> bool:
        """Whether it has the last stage of the pipeline."""
        return self.stage == self.stages - 1

    @property
    def speaks(self) -> bool:
        """Whether it is the one rank of the last stage that tells the others what came out."""
        return self.last and dist.get_rank(self.tensor_group) == dist.get_rank(self.sequence_group) == 0


class SplitModel:
    """ColossalAI's HybridParallelModule as a Scorer (see base.py)."""

    def __init__(self, wrapper: Any, built: BuiltModel, ranks: Ranks, split: Any) -> None:
        """wrapper: the sharded model, before anything forbids it gradients: what requires one is `held`, and alone
        moves and is saved. built: what it was made of. split: the HybridParallelPlugin that sharded it."""
        self.wrapper, self.built, self.ranks, self.split, self.device = wrapper, built, ranks, split, ranks.device
        self.model: Any = wrapper.unwrap()
        manager = split.stage_manager
        self.where = Where(
            stages=manager.num_stages if manager else 1,
            stage=manager.stage if manager else 0,
            tensor_group=split.tp_group,
            sequence_group=split.sp_group,
            pipeline_group=split.pp_group,
        )
        self.architecture = ARCHITECTURES[self.model.config.model_type]
        self.scheduler = None
        if manager:
            self.scheduler = ragged_schedule()(manager, num_microbatches=1, enable_metadata_cache=False)
        self.sequence_ranks = split.shard_config.sequence_parallel_size
        self.parts = held_parts(wrapper, split)
        self.held = [part for part in self.parts if part.tensor.requires_grad]
        self.all_trained = ranks.everywhere(len(self.held) == len(self.parts))
        self.vocabulary: Vocabulary = WHOLE
        if self.where.last:
            self.head: nn.Module = self.model.get_output_embeddings()
            if split.tp_size > 1:
                self.head.gather_output = False  # GPT-J's and Mixtral's policies gather, whatever was asked for
                self.vocabulary = SplitVocabulary(split.tp_group, self.head.weight.shape[0])

    @property
    def weights(self) -> Iterable[Tensor]:
        """What it takes memory for."""
        return self.model.parameters()

    def passes(
        self,
        inputs: Sequence[Mapping[str, Any]],
        use: Callable[[int, Tensor], Tensor],
        optimizer: Any = None,
    ) -> None:
        """The forward passes of some micro-batches, and the backward passes where there is an optimizer.

        inputs: what the model is called with. use: called on the ranks of the last stage with the number of a
        micro-batch and the (sequences, positions, hidden) states that go into the head; gives its loss.
        """
        given = [self._input(of) for of in inputs]
        nothing: list[Tensor] = []
        with unannounced(), captured_hidden(self.head) if self.where.last else nullcontext(nothing) as hidden:

            def result(number: int) -> Tensor:
                return use(number, hidden.pop()[:, : inputs[number]["input_ids"].shape[1]])

            if self.scheduler is not None:
                run_pipeline(self.scheduler, self.wrapper, given, result, optimizer)
                return
            for number, of in enumerate(given):
                self.wrapper(**of)
                loss = result(number)
                if optimizer is not None:
                    optimizer.backward(loss)

    def logps(self, batch: Batch, hidden: Tensor) -> PairLogps:
        """The log-probabilities of a batch, on a rank of the last stage."""
        return pair_logps(hidden, head_of(self.head, self.built.finish_logits), batch.score, vocabulary=self.vocabulary)

    @torch.no_grad()
    def score(self, micro_batches: Sequence[Batch]) -> PairLogps:
        """The log-probabilities of all pairs without gradient, on every rank, micro-batch after micro-batch."""
        self.model.eval()
        scored: list[list[Tensor]] = []

        def keep(number: int, hidden: Tensor) -> Tensor:
            spans = self.logps(micro_batches[number], hidden).by_span().values()
            columns = [torch.cat([of.values for of in spans])]
            if micro_batches[number].score.log_squared:
                columns.append(torch.cat([of.log_squared for of in spans if of.log_squared is not None]))
            scored.append(columns)
            return columns[0].new_zeros(())

        self.passes([batch.to_model(self.device) for batch in micro_batches], keep)
        parts = []
        for number, batch in enumerate(micro_batches):
            shape = (1 + batch.score.log_squared, len(batch.score.target))
            numbers = torch.stack(scored[number]) if self.where.last else torch.empty(shape, device=self.device)
            parts.append(by_span(batch.score, self._from_last(numbers).unbind()))
        return PairLogps.concatenate(parts)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Tensor], max_new_tokens: int, eos: int) -> list[list[int]]:
        """Greedy continuations, from whole passes through all stages."""
        self.model.eval()

        def following(texts: Sequence[Tensor]) -> list[int]:
            found = torch.zeros(len(texts), dtype=torch.int64, device=self.device)

            def note(number: int, hidden: Tensor) -> Tensor:
                logits = self.built.finish_logits(self.head(hidden[:, -1])).float()
                found[number] = self.vocabulary.largest(logits)[0]
                return logits.new_zeros(())

            self.passes([{"input_ids": text[None].to(self.device)} for text in texts], note)
            tokens: list[int] = self._from_last(found).tolist()
            return tokens

        return greedy(prompts, max_new_tokens, eos, following)

    @torch.no_grad()
    def move_towards(self, other: "SplitModel", mix: float) -> None:
        """weights = mix * other's + (1 - mix) * own; both are split alike."""
        for own, current in zip(self.held, other.held, strict=True):
            own.tensor.lerp_(current.tensor, mix)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Every whole weight with its name, on the main rank; see `gathered`."""
        return gathered(self.ranks, self.parts)

    def digest(self) -> str:
        """A hexadecimal hash of the whole weights, however they are split."""
        return digest(self.ranks, self.whole())

    def save_config(self, folder: Path) -> None:
        """Write config.json in Hugging Face's form."""
        save_config(self.model, folder)

    def describe(self) -> str:
        """Class and size, for people."""
        count, trained = (self._count(parts) for parts in (self.parts, self.held))
        return described(self.model, count, trained)

    def _count(self, parts: Sequence[Held]) -> int:
        """How many numbers the ranks hold of these together."""
        sizes = self.ranks.exchange(json.dumps({of.name: math.prod(of.piece.shape) for of in parts}))
        return sum({name: size for said in sizes for name, size in json.loads(said).items()}.values())

    def _input(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the model is called with here: as many positions as the ranks can share evenly. What is added stands
        behind the rest, which does not see it."""
        inputs, ids = {**given, "use_cache": False}, given["input_ids"]
        if self.scheduler is not None and self.architecture.stages_want_mask:
            inputs.setdefault("attention_mask", torch.ones_like(ids, device=self.device))
        if self.sequence_ranks > 1:
            assert given.keys() == {"input_ids"}
            inputs["input_ids"] = ids = nn.functional.pad(ids, (0, -ids.shape[1] % self.sequence_ranks))
            if self.architecture.shared_want_mask:
                inputs["attention_mask"] = causal_mask(ids, self.model.dtype)
        return inputs

    def _from_last(self, numbers: Tensor) -> Tensor:
        """A tensor that the last stage has computed, on every stage; the others give one of the same shape and type."""
        if self.where.stages > 1:
            source = dist.get_process_group_ranks(self.where.pipeline_group)[-1]
            dist.broadcast(numbers, source, group=self.where.pipeline_group)
        return numbers


class SplitBeginning(SplitModel):
    """As Beginning in whole.py."""

    def __init__(self, policy: SplitModel) -> None:
        super().__init__(policy.wrapper, policy.built, policy.ranks, policy.split)
        self.parameters = [part.tensor for part in self.held]
        self.began = [of.detach().clone() for of in self.parameters]

    @property
    @override
    def weights(self) -> Iterable[Tensor]:
        return self.began

    @override
    def score(self, micro_batches: Sequence[Batch]) -> PairLogps:
        with exchanged(self.parameters, self.began):
            return super().score(micro_batches)


def causal_mask(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """(sequences, positions) -> (sequences, 1, positions, positions): 0 where a position sees another one.

    Where positions are shared, ColossalAI's attention has no mask but the one that is given; and transformers, asked
    for one on a stage of a pipeline, would make it for the positions of one rank.
    """
    hidden = torch.full((ids.shape[1], ids.shape[1]), torch.finfo(dtype).min, dtype=dtype, device=ids.device).triu(1)
    return hidden.expand(len(ids), 1, -1, -1)
