"""Every preset with every option of every group composes, and the files in conf/ keep their promises."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from orpo_exp.cli import check, compose
from orpo_exp.config import RunConfig, TrainConfig
from orpo_exp.data import DataConfig
from orpo_exp.optimizers import OptimizerConfig, SchedulerConfig
from orpo_exp.schema import ConfigError, flat

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PRESETS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
OPTIONS = sorted(
    (file.parent.name, file.stem) for file in CONF.glob("*/*.yaml") if file.parent.name not in ("experiment", "hydra")
)
FILES = [*OPTIONS, *(("hydra/launcher", file.stem) for file in sorted((CONF / "hydra" / "launcher").glob("*.yaml")))]
MISSING = {
    "json": ["data.path=x.json"],
    "hub": ["data.path=x/y"],
    "mix": ["+data@data.sources.a=json", "data.sources.a.path=x.json"],
    "hf": ["model.path=x/y"],
}
# data and models that are `hub` and `hf` with a path: with every preset they would show the same as those two, and take
# a quarter more time; test_known.py composes each once
NAMED = {(g, o) for g, o in OPTIONS if re.search(r"^  - (hub|hf)$", (CONF / g / f"{o}.yaml").read_text(), re.MULTILINE)}
REFUSED = [("lam_schedule", "lam_schedule"), ("reference", "reference"), ("plugin", "adapter")]  # and by which key
SETTLED = {("reference", "auto"): {"frozen", "base"}}  # by what stands for it


QUICK = ("quickstart",)  # the others take a minute
MATRIX = [pytest.param(preset, marks=() if preset in QUICK else pytest.mark.slow) for preset in PRESETS]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_compose(preset):
    missing = [] if "toy" in str(composed_data(preset)) else [*MISSING["json"], *MISSING["hf"]]
    overrides = [f"+experiment={preset}", *missing]
    assert check(compose(overrides, None), overrides).experiment == preset


def composed_data(preset: str) -> object:
    return compose([f"+experiment={preset}"], None).hydra.runtime.choices["data"]


@pytest.mark.parametrize("preset", MATRIX)
def test_presets_compose_with_every_option(preset):
    """Or are refused with a reason: a schedule or a reference that does not fit, a plugin that carries no adapter."""
    of_preset = dict(compose([f"+experiment={preset}"], None).hydra.runtime.choices)
    for group, option in sorted(set(OPTIONS) - NAMED):
        overrides = [f"+experiment={preset}", f"{group}={option}", "train.max_steps=1"]
        if (group, option) == ("adapter", "existing"):
            continue  # it is looked for in its folder
        chosen = of_preset | {group: option}
        if chosen["adapter"] != "none":
            overrides.append("adapter.merge=true")  # some models lie nowhere
        overrides += [of for g in ("data", "model") for of in MISSING.get(str(chosen[g]), ())]
        try:
            order = check(compose(overrides, None), overrides)
        except ConfigError as refused:
            if (group, refused.key) in REFUSED:
                continue
            raise
        settled = SETTLED.get((group, option), {option})
        assert order.config.choices.get(group, option) in settled, (preset, group, option)
        assert order.experiment == preset


def differing(given: DictConfig, schema: DictConfig) -> dict[str, tuple[object, object]]:
    """What YAML sets to another value than the dataclass has, where that has one: key -> both."""
    own = flat(OmegaConf.to_container(schema, enum_to_str=True))
    set_to = flat(OmegaConf.to_container(OmegaConf.merge(schema, given), enum_to_str=True))
    return {key: (value, own.get(key)) for key, value in set_to.items() if own.get(key) not in (value, "???")}


@pytest.mark.parametrize(("group", "option"), FILES)
def test_every_key_of_an_option_is_explained_and_every_field_has_its_key_and_its_default(group, option):
    text = (CONF / group / f"{option}.yaml").read_text()
    assert re.match(r"(# @package .*\n)?# \S", text), "the file begins with what the option is"
    lines = text.splitlines()
    keys = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\w+):", line)) and m[1] != "defaults"}
    for key, i in keys.items():
        assert "#" in lines[i] or lines[i - 1].startswith("#"), f"{key} has no comment"
    components = ConfigStore.instance().repo["schema"].get(Path(group).name, {})
    if f"{option}.yaml" in components:
        schema = components[f"{option}.yaml"].node
        placed = set(re.findall(r"@(\w+)\.", text))  # whole groups that the defaults list puts below a key
        assert set(keys) | placed == set(schema), f"{group}/{option}.yaml and its schema have different keys"
        given = OmegaConf.load(CONF / group / f"{option}.yaml")
        assert placed or not differing(OmegaConf.masked_copy(given, list(keys)), schema)


def test_run_wide_keys_are_explained_and_have_their_defaults():
    text = (CONF / "config.yaml").read_text()
    keys = ["seed", "resume", "processes", "plan_only", "sweep", "train"]
    given = OmegaConf.masked_copy(OmegaConf.load(CONF / "config.yaml"), keys)
    assert set(given.train) == {f.name for f in fields(TrainConfig)}
    assert not differing(given, OmegaConf.structured(RunConfig))
    own = [f.name for f in fields(RunConfig) if f.name in ("seed", "processes", "plan_only")]
    for key in [*own, *(f.name for f in fields(TrainConfig))]:
        assert re.search(rf"^ *{key}: .* # \S", text, re.MULTILINE), key


def test_choices_are_recorded():
    order = check(compose(["+experiment=quickstart", "optimizer=sgd"], None), [])
    assert order.config.choices["optimizer"] == "sgd"
    assert order.config.choices["loss"] == "orpo"


def test_presets_set_run_wide_keys_and_what_all_options_of_a_group_have():
    """A single component's value in a preset would make `+experiment=P component=other` fail."""
    groups = {"data": DataConfig, "optimizer": OptimizerConfig, "scheduler": SchedulerConfig}
    for preset in PRESETS:
        content = OmegaConf.load(CONF / "experiment" / f"{preset}.yaml")
        assert content.keys() <= {"defaults", "train", "seed", "processes", "hydra", *groups}, preset
        for group in content.keys() & groups.keys():
            assert content[group].keys() <= {f.name for f in fields(groups[group])}, preset


def test_no_component_is_known_by_name_outside_its_file():
    """No `== "orpo"` and the like anywhere: what must be known of a component, it declares."""
    names = "|".join(re.escape(option) for _, option in OPTIONS if option != "step")  # a metric's name as well
    compared = re.compile(rf"""(==|!=|\bin \() *["']({names})["']""")
    for file in (ROOT / "orpo_exp").rglob("*.py"):
        found = compared.search(file.read_text())
        assert not found, f"{file}: {found}"


def test_files_can_be_read_in_one_go():
    for file in [*(ROOT / "orpo_exp").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        assert len(file.read_text().splitlines()) <= 300, file


def test_plus_key_in_a_file_is_refused_too(tmp_path):
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# @package _global_\nloss:\n  bta: 1\n")
    with pytest.raises(Exception, match="bta"):
        check(compose(["+experiment=mine"], str(tmp_path)), [])


def test_a_config_error_says_it_all():
    error = ConfigError("lam", -1, "at least 0", "Raise it.").under("loss")
    assert str(error) == "loss.lam: given -1; allowed: at least 0. Raise it."
