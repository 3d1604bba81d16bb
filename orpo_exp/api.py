"""What the command does, from Python: compose, run and sweep; and a loss by itself, on lists of numbers.

What is given as Python objects lies on disk first (outputs/given), so that a run's command line goes on with it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from orpo_exp.cli import carry_out, planned_sweep, preflight
from orpo_exp.composition import check, chosen_launcher
from orpo_exp.composition import compose as composed_by_hydra
from orpo_exp.losses import LOSSES, Loss
from orpo_exp.losses.base import counts_of
from orpo_exp.plugins import torchrun_place
from orpo_exp.plugins.pieces import hash_of
from orpo_exp.registry import import_outside
from orpo_exp.runs.order import RunOrder
from orpo_exp.runs.resuming import has_work
from orpo_exp.runs.states import read_result
from orpo_exp.schema import ConfigError, Refused
from orpo_exp.sweeps.summary import write_summary
from orpo_exp.sweeps.sweep_file import read_sweep
from orpo_exp.tracking import Tracker, TrackerConfig
from orpo_exp.tracking.jsonl import FILE, read_metrics
from orpo_exp.types import LossOutput, PairLogps, TokenLogps
from orpo_exp.user_errors import ComposeError, explain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows = Sequence[Mapping[str, Any]]
# the step, the split ("train", "eval" or, once, "test") and the metrics of it
Callback = Callable[[int, str, Mapping[str, float]], None]

GIVEN = Path("outputs/given")


@dataclass(frozen=True)
class Run:
    """A run that has ended, read from its folder."""

    folder: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """What result.json holds: status, final held-out metrics, speed, memory, versions, settings."""
        found = read_result(self.folder)
        if found is None:
            raise Refused(f"{self.folder} holds no run")
        return found

    @property
    def status(self) -> str:
        """completed, failed or interrupted; of a race's points also waiting, or set aside."""
        return str(self.result["status"])

    @property
    def metrics(self) -> dict[str, float]:
        """The final held-out metrics by name; empty before the end."""
        return dict(self.result.get("eval") or {})

    @property
    def test(self) -> dict[str, float]:
        """The same of the test pairs, which were scored once, after training; empty without any."""
        return dict(self.result.get("test") or {})

    def curve(self, split: str = "train") -> list[dict[str, Any]]:
        """The metrics of each logged step, "train" or "eval", as `pandas.DataFrame` takes them."""
        return read_metrics(self.folder / FILE, split)

    def load(self) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
        """What was trained and its tokenizer; an adapter with the model beside which it was trained."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = self.folder / "model"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if (folder / "adapter_config.json").exists():
            from peft import AutoPeftModelForCausalLM

            return AutoPeftModelForCausalLM.from_pretrained(folder), tokenizer
        return AutoModelForCausalLM.from_pretrained(folder), tokenizer


@dataclass(frozen=True)
class Sweep:
    """A sweep that has ended, or waits in a queue, read from its folder."""

    folder: Path

    @property
    def runs(self) -> dict[str, Run]:
        """Its runs that have begun, by what sets them apart: `loss.lam=0.5,seed=1`."""
        return {",".join(f"{key}={value}" for key, value in apart.items()): run for apart, run in self._begun()}

    @property
    def table(self) -> list[dict[str, Any]]:
        """Of each of these runs what sets it apart, its status and final metrics, as `pandas.DataFrame` takes them."""
        return [{**apart, "status": run.status, **run.metrics} for apart, run in self._begun()]

    @property
    def answer(self) -> str:
        """The summary's first lines: which setting is best, and whether it can be told apart from the next."""
        return write_summary(self.folder).text

    def _begun(self) -> list[tuple[dict[str, str], Run]]:
        found = read_sweep(self.folder)
        points = [(of.overrides, Run(self.folder / of.folder)) for of in (found.points if found else ())]
        return [(apart, run) for apart, run in points if read_result(run.folder)]


def compose(
    *overrides: str,
    rows: Rows | None = None,
    eval_rows: Rows | None = None,
    model: Any = None,
    tokenizer: Any = None,
    config_dir: str | None = None,
) -> RunOrder:
    """A run, composed and checked, not started: `.config` is its typed configuration.

    overrides: as on the command line. rows, eval_rows: preference data in any of the known forms, in place of a file.
    model, tokenizer: of transformers', in place of a path. Raises ValueError that names key, value and what is allowed.
    """
    arguments = [*overrides, *_on_disk(rows, eval_rows, model, tokenizer)]
    import_outside()
    try:
        return check(composed_by_hydra(arguments, config_dir), arguments, config_dir)
    except ComposeError as error:
        raise explain(error, arguments) from error


def run(
    *what: str | RunOrder,
    callback: Callback | None = None,
    **given: Any,
) -> Run:
    """Run what `compose` gave, or what it would give for these arguments; once it has ended, what came of it.

    A run that has completed in its folder already is not run again. With several processes a script keeps its own
    statements behind `if __name__ == "__main__"`, for each of them imports it. callback: called with step, split and
    metrics as they are logged; what it raises is told once and ends no training. Raises ValueError for what is refused,
    RuntimeError for a run that failed.
    """
    from orpo_exp.experiment import COMPLETED, FAILED, REFUSED, run_rank

    if torchrun_place(os.environ) is not None:
        do = "Start the script without it and set processes=N, or give the command to torchrun."
        raise ConfigError("orpo_exp.run", "torchrun", "a process that starts the others itself", do)
    order = what[0] if len(what) == 1 and isinstance(what[0], RunOrder) else compose(*what, **given)  # type: ignore[arg-type]
    refuse_plan(order)
    launcher = chosen_launcher(composed_by_hydra(order.overrides, order.options[1] if order.options else None))
    launcher.check([order])
    if not has_work(order):
        return Run(order.folder)
    order = replace(order, data=preflight(order, launcher.elsewhere() is not None))
    if callback is not None:
        if (order.config.processes or torch.cuda.device_count()) > 1:
            do = "Set processes=1, or read the run's curve."
            raise ConfigError("processes", order.config.processes, "1 with a callback, which stays in this process", do)
        order = replace(order, trackers=(Told(callback),))
    code = launcher.run(order, run_rank)
    ended = Run(order.folder)
    if code in (FAILED, REFUSED):
        error = ended.result["error"] if read_result(order.folder) else "see the log"
        raise (Refused if code == REFUSED else RuntimeError)(f"the run in {order.folder} ended: {error}")
    assert code == COMPLETED or ended.status == "interrupted"
    return ended


def sweep(*overrides: str, config_dir: str | None = None, **given: Any) -> Sweep:
    """Run the points of a sweep that are missing; lists of values as on the command line. given: as for `compose`.

    Points that fail end no other: their runs say so. On Slurm it is submitted, and this returns at once.
    """
    arguments = [*overrides, *_on_disk(**given)]
    import_outside()
    try:
        planned, folder, launcher = planned_sweep(arguments, config_dir)
    except ComposeError as error:
        raise explain(error, arguments) from error
    for order in planned.to_run:
        refuse_plan(order)
    options = ["--config-dir", config_dir] if config_dir else []
    carry_out(planned, folder, launcher, ["python", "-m", "orpo_exp", "--multirun", *options, *arguments])
    return Sweep(folder)


def refuse_plan(order: RunOrder) -> None:
    """Refuse with ConfigError a plan, which is a page and no run."""
    if order.config.plan_only:
        raise ConfigError("plan_only", True, "false from Python", "Give the command: it prints the plan.")


class Told(Tracker):
    """Hands what is logged to a function."""

    def __init__(self, callback: Callback) -> None:
        super().__init__(TrackerConfig())
        self.callback = callback

    @override
    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self.callback(step, split, metrics)


def loss(name: str, **settings: Any) -> Callable[..., LossOutput]:
    """An option of the group loss as a function of log-probabilities, (policy, reference=None, weight=None).

    It is given what `logps` makes and returns the loss, its terms, and metrics of each pair. weight: in place of the
    field that lambda schedules drive. Raises ValueError for settings that it does not have.
    """
    overrides = [f"loss={name}", *(f"loss.{key}={value}" for key, value in settings.items())]
    made: Loss = LOSSES.build(compose("+experiment=quickstart", "lam_schedule=constant", *overrides).config.loss)

    def of(policy: PairLogps, reference: PairLogps | None = None, weight: float | None = None) -> LossOutput:
        return made(policy, reference, made.weight if weight is None else weight, counts_of(policy))

    return of


def logps(
    chosen: Sequence[Sequence[float]],
    rejected: Sequence[Sequence[float]],
    prompt: Sequence[Sequence[float]] | None = None,
) -> PairLogps:
    """Log-probabilities, in nats, of each token of each pair's answers, and of its prompt where a loss asks for it."""

    def of(answers: Sequence[Sequence[float]]) -> TokenLogps:
        lengths = torch.tensor([len(answer) for answer in answers], dtype=torch.int64)
        values = torch.tensor([value for answer in answers for value in answer], dtype=torch.float64)
        return TokenLogps(values.requires_grad_(), lengths)

    if not len(chosen) == len(rejected) == len(chosen if prompt is None else prompt):
        raise Refused(
            f"{len(chosen)} chosen and {len(rejected)} rejected answers: of each pair one of both, and a prompt"
        )
    return PairLogps(of(chosen), of(rejected), None if prompt is None else of(prompt))


def _on_disk(
    rows: Rows | None = None, eval_rows: Rows | None = None, model: Any = None, tokenizer: Any = None
) -> list[str]:
    """The overrides that name what was given, once it lies in files named by their contents."""
    overrides = []
    if rows is not None:
        overrides += ["data=json", f"data.path={_written(rows)}"]
    if eval_rows is not None:
        overrides.append(f"data.eval_path={_written(eval_rows)}")
    if (model is None) != (tokenizer is None):
        raise Refused("a model without its tokenizer, or the reverse, was given; give both")
    if model is not None:
        content = model.config.to_json_string() + hash_of(model.state_dict().items())
        folder = GIVEN / f"model-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        overrides += ["model=hf", f"model.path={folder}"]
    return overrides


def _written(rows: Rows) -> Path:
    text = "".join(json.dumps(dict(row)) + "\n" for row in rows)
    path = GIVEN / f"rows-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
