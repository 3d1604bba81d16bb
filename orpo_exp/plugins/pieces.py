"""Parameters in pieces: what a rank holds of each, and checkpoints in which each rank writes its own.

A checkpoint of pieces says of each tensor where it lies in the whole parameter. So it can be read by any other split,
and by one process alone.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from orpo_exp.plugins.ranks import Ranks
from orpo_exp.plugins.state import as_state, as_tensors
from orpo_exp.schema import Refused
from orpo_exp.versions import dtype_name

WEIGHT = "weight"
POLICY, HELD = "policy", "reference"  # what the names of files begin with: <what>-<rank>.safetensors
OWN = "#own"  # marks a state that has another shape than its parameter, so that it cannot be cut as that is


@dataclass(frozen=True)
class Piece:
    """Which numbers of a whole parameter these are: of its entries `first` to `last` along `dim`, flattened, those from
    `start` to `stop`."""

    shape: tuple[int, ...]
    dim: int
    first: int
    last: int
    start: int
    stop: int

    @staticmethod
    def whole(shape: Sequence[int]) -> "Piece":
        """All of a parameter."""
        return Piece(tuple(shape), 0, 0, shape[0] if shape else 1, 0, torch.Size(shape).numel())

    @staticmethod
    def block(shape: Sequence[int], dim: int, first: int, last: int) -> "Piece":
        """Some entries along one dimension, as tensor parallelism cuts; `last` may lie beyond the end, in a padding."""
        last = min(last, shape[dim])
        first = min(first, last)
        return Piece(tuple(shape), dim, first, last, 0, torch.Size(shape).numel() // shape[dim] * (last - first))

    def range(self, start: int, stop: int) -> "Piece":
        """Of this block, flattened, some numbers, as ZeRO cuts; `stop` may lie beyond the end, in a padding."""
        return Piece(self.shape, self.dim, self.first, self.last, min(start, self.stop), min(stop, self.stop))

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return self.stop - self.start

    def cut(self, whole: Tensor) -> Tensor:
        """These numbers of a whole parameter, 1-D."""
        return self._block(whole).flatten()[self.start : self.stop]

    def put(self, whole: Tensor, numbers: Tensor) -> None:
        """Write these numbers, 1-D, to their place in a whole parameter."""
        block = self._block(whole)
        flat = block.flatten().clone()
        flat[self.start : self.stop] = numbers
        block.copy_(flat.view_as(block))

    def _block(self, whole: Tensor) -> Tensor:
        return whole.narrow(self.dim, self.first, self.last - self.first) if self.shape else whole


@dataclass(frozen=True)
class Held:
    """What a rank holds of one parameter.

    name: the parameter's, as in the model's Hugging Face form. tensor: the numbers that the optimizer updates, master
    weights where there are any; perhaps with a padding behind them.
    """

    name: str
    piece: Piece
    tensor: Tensor


def master_parts(held: Sequence[Held], masters: Mapping[int, Tensor], rank: int) -> list[Held]:
    """What an optimizer updates in place of the weights: float32 copies of them, whole or an equal range for each rank.

    masters: by the id of each parameter, as ColossalAI's optimizers tell it. rank: among those that share a parameter.
    """
    parts = []
    for part in held:
        if (master := masters.get(id(part.tensor))) is not None:
            start = rank * master.numel()
            parts.append(Held(part.name, part.piece.range(start, start + master.numel()), master))
    return parts


def save_pieces(folder: Path, of: str, rank: int, held: Sequence[Held], optimizer: Optimizer | None) -> str:
    """Write this rank's parameters of the model `of` and their optimizer states; the file's name."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    for part in held:
        places[part.name] = json.dumps(astuple(part.piece))
        state = optimizer.state.get(part.tensor, {}) if optimizer else {}
        for key, value in {WEIGHT: part.tensor, **as_tensors(state)}.items():
            value = value.detach()
            if value.ndim and value.shape == part.tensor.shape:
                value = value.flatten()[: part.piece.numel]
            elif value.ndim:
                key += OWN
            tensors[f"{part.name}/{key}"] = value.to("cpu", copy=True).contiguous()
    name = f"{of}-{rank}.safetensors"
    save_file(tensors, folder / name, metadata=places)
    return name


class Pieces:
    """The pieces of a checkpoint, all ranks' files together."""

    def __init__(self, folder: Path, of: str) -> None:
        """of: POLICY or HELD."""
        from safetensors import safe_open

        self.files: list[Any] = [safe_open(path, "pt") for path in sorted(folder.glob(f"{of}-*.safetensors"))]

    @cached_property
    def index(self) -> dict[str, list[tuple[Piece, Any]]]:
        """Where the pieces of each parameter lie."""
        index: dict[str, list[tuple[Piece, Any]]] = {}
        for file in self.files:
            for name, place in file.metadata().items():
                shape, *numbers = json.loads(place)
                index.setdefault(name, []).append((Piece(tuple(shape), *numbers), file))
        return index

    @cached_property
    def _keys(self) -> dict[str, list[str]]:
        keys: dict[str, list[str]] = {}
        for file in self.files:
            for key in file.keys():  # noqa: SIM118 (a safetensors file cannot be iterated over)
                name, _, of = key.rpartition("/")
                keys.setdefault(name, []).append(of)
        return {name: sorted(set(of)) for name, of in keys.items()}

    def states(self, name: str) -> list[str]:
        """The names of what an optimizer keeps for a parameter."""
        return [key for key in self._keys.get(name, []) if key != WEIGHT]

    def whole(self, name: str, key: str = WEIGHT) -> Tensor:
        """A whole parameter, or a whole state of it."""
        shape = self.index[name][0][0].shape
        whole: Tensor | None = None
        for piece, file in self.index[name]:
            numbers = file.get_tensor(f"{name}/{key}")
            if numbers.ndim == 0:  # a count of steps: the same for all of it
                return numbers.clone()
            whole = torch.empty(shape, dtype=numbers.dtype) if whole is None else whole
            piece.put(whole, numbers)
        assert whole is not None
        return whole

    def part(self, name: str, key: str, wanted: Piece) -> Tensor:
        """Some numbers of a parameter or of its state, 1-D; a count of steps as it is.

        Raises Refused where a state that cannot be cut is wanted by another split.
        """
        for piece, file in self.index[name]:
            if piece == wanted:
                return file.get_tensor(f"{name}/{key}").clone()
        if key.endswith(OWN):
            raise Refused(
                f"what the optimizer keeps for {name} ({key.removesuffix(OWN)}) belongs to the split that it was saved "
                f"with. Go on with that run's number of ranks and settings of the plugin."
            )
        whole = self.whole(name, key)
        return whole if whole.ndim == 0 else wanted.cut(whole)


@torch.no_grad()
def load_pieces(pieces: Pieces, held: Sequence[Held], optimizer: Optimizer | None) -> None:
    """Give a rank's parameters, and their optimizer, what a checkpoint of this or of another split says of them."""
    for part in held:
        numbers = pieces.part(part.name, WEIGHT, part.piece)
        part.tensor.view(-1)[: part.piece.numel].copy_(numbers)
        if optimizer is None:
            continue
        state: dict[str, Tensor] = {}
        for key in pieces.states(part.name):
            value = pieces.part(part.name, key, part.piece)
            if value.ndim == 0 or key.endswith(OWN):
                # a count of steps lies where torch's fused optimizers want it
                state[key.removesuffix(OWN)] = value.to(part.tensor.device)
            else:
                state[key] = torch.zeros_like(part.tensor, dtype=value.dtype)
                state[key].view(-1)[: part.piece.numel].copy_(value)
        if state:
            optimizer.state[part.tensor] = as_state(state)


@torch.no_grad()
def gathered(ranks: Ranks, held: Sequence[Held]) -> Iterator[tuple[str, Tensor]]:
    """Every whole parameter with its name, in the order of names, one at a time: on the main rank, on the CPU. The
    others send what it lacks and get nothing; all ranks go through all of it."""
    own = {part.name: part for part in held}
    places = {name: [str(part.tensor.dtype), *astuple(part.piece)] for name, part in own.items()}
    said = [json.loads(text) for text in ranks.exchange(json.dumps(places))]
    for name in sorted({name for of in said for name in of}):
        sources: dict[Piece, int] = {}
        for rank, of in enumerate(said):
            if name in of:
                dtype, shape, *numbers = of[name]
                sources.setdefault(Piece(tuple(shape), *numbers), rank)
        whole: Tensor | None = None
        for piece, rank in sources.items():
            if rank == ranks.rank:
                numbers = own[name].tensor.detach().flatten()[: piece.numel]
                if not ranks.is_main:
                    dist.send(numbers.to(ranks.device).contiguous(), 0)  # it may lie in the host's memory
            elif ranks.is_main:
                kind = getattr(torch, dtype.removeprefix("torch."))
                numbers = torch.empty(piece.numel, dtype=kind, device=ranks.device)
                dist.recv(numbers, rank)
            if ranks.is_main:
                whole = torch.empty(piece.shape, dtype=numbers.dtype) if whole is None else whole
                piece.put(whole, numbers.cpu())
        if whole is not None:
            yield name, whole


def hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hexadecimal SHA-256 of tensors and their names, in their order, wherever they lie."""
    hashed = hashlib.sha256()
    for name, tensor in tensors:
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def digest(ranks: Ranks, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The hash, on every rank, of what `gathered` gives."""
    return ranks.exchange(hash_of(tensors))[0]


def save_config(model: Any, folder: Path) -> None:
    """Write a causal LM's config.json, and its generation settings, as `save_pretrained` does beside the weights."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    setattr(config, dtype_name(), model.dtype)
    if getattr(config, "_attn_implementation_autoset", False):  # or it would be loaded with the eager kernel
        config._attn_implementation_autoset = False
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def write_model(folder: Path, tensors: Iterable[tuple[str, Tensor]], most: int = 5 * 10**9) -> None:
    """Write weights as Hugging Face folders hold them: safetensors of at most `most` bytes each, with an index where
    there are several. No more than one file's tensors are held at a time."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    parts: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    size = total = 0

    def write() -> None:
        save_file(waiting, folder / f"part-{len(parts)}.safetensors", metadata={"format": "pt"})
        parts.append(list(waiting))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and size + tensor.nbytes > most:
            write()
            size = 0
        waiting[name] = tensor.contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write()
    if len(parts) == 1:
        (folder / "part-0.safetensors").rename(folder / "model.safetensors")
        return
    files = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for i, file in enumerate(files):
        (folder / f"part-{i}.safetensors").rename(folder / file)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, names in zip(files, parts, strict=True) for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
