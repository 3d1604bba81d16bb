"""What a plan comes to, as plain values: they travel from the ranks to the page."""

from dataclasses import dataclass, field, fields

from orpo_exp.plugins.memory import Footprint

NAMES = {
    "libraries": "libraries, data",
    "weights": "weights",
    "copies": "float32 copies",
    "gradients": "gradients",
    "state": "optimizer state",
    "activations": "activations",
    "logits": "logits",
}


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank, by the names of NAMES; None for what cannot be told. On several ranks the largest of each.

    device: what they lie on. on_host: parts that lie elsewhere. at_once: whether gradients are there before activations
    are; else they come as these go. ranks: how many share what there is. there: what there is for them; None: the
    device is not here. seen: the most that was measured in the timed steps, None without any.
    """

    device: str
    parts: dict[str, int | None]
    on_host: frozenset[str]
    at_once: bool
    ranks: int
    there: int | None
    seen: int | None = None

    @property
    def together(self) -> int | None:
        """The most that a rank holds at a time; None where a part is not known."""
        parts = {name: size for name, size in self.parts.items() if name not in self.on_host}
        if any(size is None for size in parts.values()):
            return None
        sizes = {name: size or 0 for name, size in parts.items()}
        micro_batch, gradients = sizes.pop("activations", 0) + sizes.pop("logits", 0), sizes.pop("gradients", 0)
        return sum(sizes.values()) + (micro_batch + gradients if self.at_once else max(micro_batch, gradients))

    @property
    def most(self) -> int | None:
        """What a rank takes: together, or as it was seen, where that is more; None where neither is known."""
        return max(self.together or 0, self.seen or 0) or None

    @property
    def fits(self) -> bool | None:
        """Whether there is room for all of it; None where that is not known."""
        return None if self.there is None or self.most is None else self.ranks * self.most <= self.there


@dataclass(frozen=True)
class Time:
    """Seconds: of what happens once (start, end), of one step, one evaluation, one checkpoint. steps: timed ones."""

    start: float
    step: float
    evaluation: float
    checkpoint: float
    end: float
    steps: int


@dataclass(frozen=True)
class Figures:
    """All that a plan says of one run. done: steps that a checkpoint has behind it. tokens: of an epoch, of endless
    data of all steps. largest: pairs and positions of the largest micro-batch. untimed: why there is no time."""

    model: str
    pairs: int | None
    held_out: int
    cut: int
    skipped: int
    batch: int
    steps: int
    done: int
    epochs: float | None
    tokens: int
    padding: float
    spared: float
    layout: str
    rounds: int
    largest: tuple[int, int]
    ranks: int
    evaluations: int
    checkpoints: int
    checkpoint_bytes: int | None
    memory: Memory
    time: Time | None = None
    untimed: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float | None:
        """How long the run takes, as `wall_time_seconds` of its result.json counts it."""
        if self.time is None:
            return None
        of = self.time
        repeated = (self.steps - self.done) * of.step + self.evaluations * of.evaluation
        return of.start + repeated + self.checkpoints * of.checkpoint + of.end


def parts_of(held: Footprint | None) -> dict[str, int | None]:
    """A footprint by the names of its parts; without one nothing is known of them."""
    return {of.name: getattr(held, of.name) if held else None for of in fields(Footprint)}
