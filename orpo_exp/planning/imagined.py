"""What a micro-batch takes while it is computed, told by a model whose tensors have sizes and no numbers."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from orpo_exp.plugins.precision import Precision
from orpo_exp.plugins.whole import WholeModel
from orpo_exp.quantized import parameter_count
from orpo_exp.scoring import captured_hidden, head_of, token_logps
from orpo_exp.types import Batch, BuiltModel


class Alive(TorchDispatchMode):
    """Counts the bytes behind the tensors that are made inside, for as long as something holds them.

    known: tensors whose memory is not counted. now, most: bytes at this moment, and at most so far.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}
        self._known = [of.untyped_storage() for of in known]  # held, so that no other gets their numbers
        self._sizes.update({of._cdata: 0 for of in self._known})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        number = storage._cdata
        if number in self._sizes:
            return
        size = self._sizes[number] = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._let_go, number)

    def _let_go(self, number: int) -> None:
        self.now -= self._sizes.pop(number)


class Imagined:
    """A model on no device. parameters: how many numbers it has. whole: its parameters; trained: those that are
    updated."""

    def __init__(self, built: BuiltModel, precision: Precision) -> None:
        """built: empty, see Builder; it is of no use afterwards."""
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._model = WholeModel(built, torch.device("cpu"), precision.dtype)
        model = self._model.model
        model.config.pad_token_id = None  # else some look whether a batch has such tokens
        with self._fake:
            _replace(model, lambda of: self._fake.from_tensor(of), precision.weights)
        self.parameters = parameter_count(model)
        self.module: nn.Module = model
        self.whole = list(model.parameters())
        self.trained = [of for of in self.whole if of.requires_grad]

    def updated(self) -> list[Tensor]:
        """What the optimizer updates, in float32."""
        with self._fake, torch.no_grad():
            return [of.float() for of in self.trained]

    def trains(self, batch: Batch) -> tuple[int, int]:
        """What a forward and a backward pass hold at most beside weights and gradients, in bytes; the second number is
        the part of it that belongs to the head, from hidden states to log-probabilities and back."""
        with self._fake:
            self._model.model.train()
            for of in self.trained:
                of.grad = torch.empty_like(of)
            try:
                return self._most(batch, lambda output: output.sum().backward())
            finally:
                for of in self.trained:
                    of.grad = None

    def scores(self, batch: Batch) -> tuple[int, int]:
        """The same of a forward pass without gradient."""
        with self._fake, torch.no_grad():
            self._model.model.eval()
            return self._most(batch, lambda output: None)

    def _most(self, batch: Batch, backward: Callable[[Tensor], None]) -> tuple[int, int]:
        with Alive(self._known()) as both:
            hidden = self._blocks(batch)
            backward(self._head(hidden, batch))
        states = torch.empty_like(hidden, requires_grad=torch.is_grad_enabled())
        with Alive([*self._known(), states]) as head:
            backward(self._head(states, batch))
        return both.most - head.most, head.most

    def _blocks(self, batch: Batch) -> Tensor:
        """(rows, columns, hidden), the states that go into the head."""
        model = self._model
        with model.autocast(), captured_hidden(model.model.get_output_embeddings()) as hidden:
            model.model(**batch.to_model(model.device), use_cache=False)
        return hidden[0]

    def _head(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(scored tokens,) log-probabilities. As `pair_logps`, which would look at numbers to part them."""
        model, index = self._model, batch.score
        head = head_of(model.model.get_output_embeddings(), model.built.finish_logits)
        with model.autocast():
            states = hidden[index.sequence, index.position]
            return token_logps(states, head, index.target, log_squared=index.log_squared)[0]

    def _known(self) -> list[Tensor]:
        gradients = [of.grad for of in self.trained if of.grad is not None]
        return [*self.whole, *self._model.model.buffers(), *gradients]


def _replace(model: nn.Module, by: Callable[[Tensor], Tensor], dtype: torch.dtype | None) -> None:
    """Put other tensors in the place of a model's own, tied ones in all of theirs; parameters of that type."""
    others: dict[int, tuple[Any, Tensor]] = {}  # with the tensor itself, so that no other gets its number
    for module in model.modules():
        for tensors, cast in ((module._parameters, dtype), (module._buffers, None)):
            for name, of in tensors.items():
                if of is None:
                    continue
                if id(of) not in others:
                    made = by(of.to(cast) if cast is not None and of.is_floating_point() else of)
                    if isinstance(of, nn.Parameter):
                        made = nn.Parameter(made.detach(), of.requires_grad)
                    others[id(of)] = made, of
                tensors[name] = others[id(of)][0]
