"""RunConfig, the typed root of a configuration, and the checks that span several of its parts."""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

import torch
from omegaconf import MISSING, DictConfig, OmegaConf

from orpo_exp.adapters import ADAPTERS, AdapterConfig
from orpo_exp.data import DATA, DataConfig
from orpo_exp.layouts import LAYOUTS, LayoutConfig
from orpo_exp.losses import LAM_SCHEDULES, LOSSES, LamScheduleConfig, Loss, LossConfig, Scope
from orpo_exp.metrics import TRAINING, Direction, Metric
from orpo_exp.models import LOOKED_UP, MODELS, ModelConfig
from orpo_exp.optimizers import OPTIMIZERS, OptimizerConfig, SchedulerConfig
from orpo_exp.plugins import PLUGINS, PluginConfig
from orpo_exp.plugins.rules import Facts
from orpo_exp.schema import ConfigError, Settings, content_as_before, flat, numeric_content, setting
from orpo_exp.tracking import TrackerConfig
from orpo_exp.training.reference import REFERENCES, ReferenceConfig
from orpo_exp.training.settings import TrainConfig
from orpo_exp.types import Need


@dataclass
class SweepConfig(Settings):
    """How a sweep is told from others, and what of it is run.

    name: its folder's; None: a hash of what is swept. metric, direction: the held-out metric that decides, and its good
    end; None: as summaries choose it, and as it is declared. racing: whether settings that are clearly behind are set
    aside, after each of the rungs, shares of the steps. trials: how many settings are tried of those that intervals and
    lists leave open; None: all, and no interval is allowed.
    """

    name: str | None = None
    metric: str | None = None
    direction: Direction | None = None
    racing: bool = False
    rungs: list[float] = field(default_factory=lambda: [0.25, 0.5])
    trials: int | None = setting(None, ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.racing and self.trials is not None:
            do = "Choose one of the two."
            raise ConfigError(
                "racing", True, "false with sweep.trials: a search has no settings to compare at once", do
            )
        rising = all(low < high for low, high in itertools.pairwise([0.0, *self.rungs, 1.0]))
        if not (self.rungs and rising):
            allowed = "one or several shares of the steps, above 0 and below 1, each above the one before"
            raise ConfigError("rungs", self.rungs, allowed, "Write sweep.rungs=[0.25,0.5], say.")
        if self.name is not None and not re.fullmatch(r"[\w=,+-][\w.=,+-]*", self.name, re.ASCII):
            raise ConfigError("name", self.name, "letters, digits and _ . = , + -", "Choose a name for a folder.")


NOT_NUMERIC = {"affects_numbers": False}  # of a field that no number of a run depends on
# The groups that say how work is laid out and split: which option of them is chosen is no part of the identity.
SPLIT = ("layout", "plugin")
# What the first version's hashes covered that changes no number: in it there was one layout and one plugin. Every hash
# goes on covering it as it was then, so that runs and sweeps of that version are found again.
FIRST_VERSION = {"layout": {}, "choices": {"layout": "padded", "plugin": "ddp"}}


@dataclass
class RunConfig(Settings):
    """One run, whole. `choices` says which option each group was composed from; it is filled in, never given.

    A group added later gets `as_before=OPTION`: with this option everything is as it was without the group.
    """

    model: ModelConfig = MISSING
    adapter: AdapterConfig = field(default=MISSING, metadata={"as_before": "none"})
    data: DataConfig = MISSING
    layout: LayoutConfig = field(default=MISSING, metadata=NOT_NUMERIC)
    loss: LossConfig = MISSING
    reference: ReferenceConfig = MISSING
    lam_schedule: LamScheduleConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    scheduler: SchedulerConfig = MISSING
    plugin: PluginConfig = MISSING
    tracker: dict[str, TrackerConfig] = field(default_factory=dict, metadata=NOT_NUMERIC)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = setting(0, ge=0, lt=2**31)
    processes: int | None = setting(None, ge=1, affects_numbers=False)
    plan_only: bool = setting(False, affects_numbers=False)
    resume: str = setting("auto", affects_numbers=False)
    sweep: SweepConfig = field(default_factory=SweepConfig, metadata=NOT_NUMERIC)
    choices: dict[str, str] = field(default_factory=dict)

    @property
    def config_hash(self) -> str:
        """16 hexadecimal digits over everything that can change a number of the run."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def numeric(self, whole: bool = False) -> dict[str, Any]:
        """Everything that can change a number of the run, as plain values; see `numeric_content`."""
        content: dict[str, Any] = numeric_content(self, whole)
        for group in fields(self):
            if group.name in SPLIT or not self.numbers_depend_on(group):
                content["choices"].pop(group.name, None)
        for name, option in self._groups_as_before().items():
            if not whole and not content[name] and content["choices"].get(name) == option:
                del content[name], content["choices"][name]
        return content

    def as_before(self) -> dict[str, Any]:
        """What a configuration from before the fields and groups that were added later is read as having, by key."""
        added = {f"choices.{name}": option for name, option in self._groups_as_before().items()}
        return flat(content_as_before(self)) | added

    def _groups_as_before(self) -> dict[str, str]:
        groups = [f for f in fields(self) if isinstance(getattr(self, f.name), Settings)]
        return {f.name: f.metadata["as_before"] for f in groups if "as_before" in f.metadata}

    def identity(self) -> dict[str, Any]:
        """What tells runs apart: `numeric`, and what the first version had besides."""
        content = self.numeric()
        return {**content, **FIRST_VERSION, "choices": content["choices"] | FIRST_VERSION["choices"]}


def declared_metrics(config: RunConfig) -> dict[str, Metric]:
    """What is reported of a run, by name."""
    return {**LOSSES.build(config.loss).metrics, **TRAINING}


def typed(node: DictConfig, choices: dict[str, str]) -> RunConfig:
    """A composed configuration as typed objects, every part and every combination checked.

    Raises ConfigError for keys that no schema knows (Hydra's `+key=value` puts them there), values that were never
    given or were deleted, and values out of range.
    """
    if node.choices:
        raise ConfigError("choices", dict(node.choices), "nothing: it is filled in", "Choose with `loss=...`, say.")
    _check_keys(node, "")
    parts: dict[str, Any] = {"choices": choices}
    for key, value in node.items():
        if key == "tracker":
            parts["tracker"] = {name: _object(tracker, f"tracker.{name}") for name, tracker in value.items()}
        elif key != "choices":
            parts[str(key)] = _object(value, str(key)) if isinstance(value, DictConfig) else value
    config = RunConfig(**parts)
    adapter = ADAPTERS.of(config.adapter)
    if config.optimizer.lr is None:
        config.optimizer.lr = float(f"{MODELS.of(config.model).suited_lr * adapter.lr_factor:.3g}")
    if (settled := REFERENCES.of(config.reference).settled(adapter.partial)) is not None:
        config.reference, choices["reference"] = REFERENCES.named(settled).Config(), settled
    check(config)
    return config


def typed_part(node: DictConfig, key: str) -> Any:
    """A part of a composed configuration as its typed object, checked as `typed` does; `key`: where it lies."""
    _check_keys(node, key)
    return _object(node, key)


def _object(node: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.to_object(node)
    except ConfigError as error:
        raise error.under(key) from None


def _check_keys(node: DictConfig, path: str) -> None:
    """Every key of a structured node must be a field of its dataclass, every field be there and have a value."""
    schema = OmegaConf.get_type(node)
    known = {f.name for f in fields(schema)} if schema is not None and schema is not dict else set(node)
    for name in [*node, *sorted(known - set(node))]:
        key = f"{path}.{name}" if path else str(name)
        if name not in known:
            value = OmegaConf.to_container(node)[name]  # type: ignore[index]
            raise ConfigError(key, value, f"the keys of {path or 'the run'}: {', '.join(sorted(known))}", "Remove it.")
        if OmegaConf.is_missing(node, name):
            raise ConfigError(key, "nothing", "a value: there is no default", f"Add {key}=... to the command.")
        value = node[name]
        if isinstance(value, DictConfig):
            _check_keys(value, key)


def check(config: RunConfig) -> None:
    """Refuse with ConfigError what no part of the configuration can see alone, before anything is loaded."""
    train = config.train
    if train.max_steps is None and (train.epochs is None or DATA.of(config.data).endless):
        allowed = "a whole number from 1; or train.epochs, for data that has an end"
        raise ConfigError("train.max_steps", None, allowed, "Say how long to train, e.g. train.max_steps=400.")
    check_plugin(config, config.processes)
    if LAYOUTS.of(config.layout).several_texts and config.model.attention not in LOOKED_UP:
        allowed = f"auto or padded with model.attention={config.model.attention.value}: a row then holds one text only"
        do = "Choose layout=auto or model.attention=sdpa."
        raise ConfigError("layout", config.choices.get("layout"), allowed, do)
    adapter = ADAPTERS.build(config.adapter)
    source = MODELS.build(config.model)
    adapter.check(source.found_at, source.quantized)
    loss = LOSSES.build(config.loss)
    _check_lam_schedule(config, loss)
    for part, dropout in {"model": config.model.dropout, "adapter": adapter.dropout}.items():
        if loss.scope is Scope.batch and dropout > 0:
            allowed = "0, for this loss scores each batch twice and must see the same numbers"
            raise ConfigError(f"{part}.dropout", dropout, allowed, f"Set {part}.dropout=0.")
    if loss.needs_reference and REFERENCES.of(config.reference).of_trained and not adapter.partial:
        allowed = "frozen, cached or synced without an adapter, by which a part of the weights alone moves"
        raise ConfigError("reference", config.choices.get("reference"), allowed, "Choose reference=frozen.")
    if Need.mismatched in loss.needs and train.global_batch_size == 1:
        allowed = "2 or more, for this loss takes another pair's answers from the same batch"
        raise ConfigError("train.global_batch_size", 1, allowed, "Raise train.global_batch_size.")
    if loss.needs_reference and Need.mismatched in loss.needs and REFERENCES.of(config.reference).per_pair:
        allowed = "frozen or synced, for what this loss compares with depends on the batch"
        raise ConfigError("reference", config.choices.get("reference"), allowed, "Choose reference=frozen.")
    if train.keep_best:
        _check_metric("train.best_metric", train.best_metric, "train.best_direction", train.best_direction, loss)
    if config.sweep.metric is not None:
        _check_metric("sweep.metric", config.sweep.metric, "sweep.direction", config.sweep.direction, loss)
    most = torch.cuda.device_count() or 8
    if config.processes is not None and config.processes > most:
        do = "For more, use torchrun or Slurm."
        raise ConfigError("processes", config.processes, f"1 to {most} on this machine", do)


def check_plugin(config: RunConfig, world_size: int | None, starting: bool = False) -> None:
    """Refuse with ConfigError what the plugin cannot be combined with. world_size: None where it is not known yet.
    starting: whether the run starts now; then a hub is asked for the model's config.json."""
    facts = Facts(
        plugin=config.plugin,
        reference=config.reference,
        model_settings=config.model,
        optimizer=OPTIMIZERS.of(config.optimizer),
        adapter=ADAPTERS.of(config.adapter),
        read_model=lambda: MODELS.build(config.model).facts(hub=starting),
        world_size=world_size,
    )
    rule = PLUGINS.of(config.plugin).refused(facts)
    if rule is None:
        return
    group, _, name = rule.key.partition(".")
    if rule.key == "processes":
        given: object = world_size
    else:
        given = getattr(getattr(config, group), name) if name else config.choices.get(group)
    given = given.value if isinstance(given, Enum) else given
    raise ConfigError(rule.key, given, rule.allowed, rule.advice(facts))


def _check_lam_schedule(config: RunConfig, loss: Loss) -> None:
    given, schedule = config.choices.get("lam_schedule"), LAM_SCHEDULES.of(config.lam_schedule)
    if loss.weight_field is None and schedule.varies:
        allowed = "constant, for this loss has no weight to be driven"
        raise ConfigError("lam_schedule", given, allowed, "Choose lam_schedule=constant or another loss.")
    if missing := schedule.needs_metrics - loss.metrics.keys():
        allowed = f"a schedule that does not read {', '.join(sorted(missing))}: this loss does not report it"
        raise ConfigError("lam_schedule", given, allowed, "Choose another schedule, or a loss that reports it.")
    LAM_SCHEDULES.build(config.lam_schedule, loss.weight, 1)  # refuses a starting weight that it cannot work with


def _check_metric(key: str, metric: str, end: str, direction: Direction | None, loss: Loss) -> None:
    """What is best must be known before the first step. key, end: the settings that say so."""
    if metric not in loss.metrics:
        raise ConfigError(key, metric, ", ".join(loss.metrics), "Choose a metric of this loss.")
    if direction is None and loss.metrics[metric].good is None:
        raise ConfigError(end, None, "max or min", f"Say which end of {metric} is good: neither is by itself.")


def resolved(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values, as config.yaml holds it."""
    container: Any = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    return container
