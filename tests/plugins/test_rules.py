"""What plugins can be combined with: every rule has a command that breaks it, and stands in the README."""

import json
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
from support import order_of

from orpo_exp.plugins import PLUGINS, Plugin
from orpo_exp.schema import ConfigError

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
RUN = ("+experiment=quickstart", "train.max_steps=2")
HYBRID = "plugin=hybrid"

# plugin, number of its rule -> overrides that break this rule alone
BREAKS = {
    ("gemini", 0): ["plugin.placement_policy=auto", "plugin.shard_param_frac=0.5"],
    ("gemini", 1): ["plugin.placement_policy=auto", "plugin.offload_optim_frac=1.0"],
    ("gemini", 2): ["plugin.placement_policy=auto", "plugin.offload_param_frac=0.5"],
    ("gemini", 3): ["plugin.warmup_non_model_data_ratio=0.5"],
    ("gemini", 4): ["plugin.steady_cuda_cap_ratio=0.5"],
    ("gemini", 5): ["plugin.offload_param_frac=0.5"],
    ("gemini", 6): ["optimizer=fused_adam", "plugin.offload_optim_frac=0.5"],
    ("zero1", 1): ["plugin.precision=bf16_weights", "loss=dpo", "reference=synced", "reference.mix=0.5"],
    ("hybrid", 1): ["plugin.tp_size=2", "processes=3"],
    ("hybrid", 2): ["plugin.tp_size=2", "plugin.sp_mode=ring"],
    ("hybrid", 3): ["plugin.zero_stage=1"],
    ("hybrid", 4): ["plugin.zero_stage=2", "plugin.pp_size=2", "plugin.precision=bf16_weights"],
    ("hybrid", 5): ["plugin.cpu_offload=true"],
    ("hybrid", 6): ["model.arch=qwen3"],
    ("hybrid", 7): ["plugin.tp_size=3"],
    ("hybrid", 8): ["plugin.pp_size=99"],
    ("hybrid", 9): ["plugin.pp_size=2", "plugin.layers_per_stage=[1,2]"],
}


NAMES = sorted(file.stem for file in (Path(__file__).parents[2] / "conf" / "plugin").glob("*.yaml"))


@cache
def plugin_named(name: str) -> type[Plugin]:
    return PLUGINS.of(order_of(*RUN, f"plugin={name}").config.plugin)


def table() -> list[str]:
    """The README's rows, from what the plugins declare."""
    rows = []
    for name in NAMES:
        plugin = plugin_named(name)
        precisions = ", ".join(sorted(precision.value for precision in plugin.precisions))
        rows.append(f"| `{name}` | `plugin.precision` | {precisions} |")
        rows += [f"| `{name}` | `{rule.key}` | {rule.allowed} |" for rule in plugin.rules]
    return rows


def test_the_readme_has_every_rule():
    missing = [row for row in table() if row not in README]
    assert not missing, "\n".join(table())


@pytest.mark.parametrize(("name", "number"), BREAKS)
def test_what_breaks_a_rule_is_refused_by_it(name, number):
    rule = plugin_named(name).rules[number]
    with pytest.raises(ConfigError) as refused:
        order_of(*RUN, f"plugin={name}", *BREAKS[name, number])
    assert (refused.value.key, refused.value.allowed) == (rule.key, rule.allowed)
    assert refused.value.do.startswith(rule.do)


@pytest.mark.parametrize("name", NAMES)
def test_a_precision_that_a_plugin_does_not_have_is_refused(name):
    for precision in ("fp32", "tf32", "bf16", "fp16", "bf16_weights", "fp16_weights"):
        known = precision in {of.value for of in plugin_named(name).precisions}
        with nullcontext() if known else pytest.raises(ConfigError, match=r"plugin\.precision"):
            order_of(*RUN, f"plugin={name}", f"plugin.precision={precision}")


@pytest.mark.parametrize("plugin", [["plugin=zero1"], [HYBRID, "plugin.tp_size=2", "processes=2"]])
def test_an_optimizer_that_needs_whole_parameters_is_refused_where_they_are_cut(plugin):
    with pytest.raises(ConfigError, match=r"optimizer: given 'adafactor'.* Here .*\.$"):
        order_of(*RUN, "optimizer=adafactor", *plugin)
    order_of(*RUN, "optimizer=adafactor", HYBRID, "plugin.pp_size=2", "processes=2")
    order_of(*RUN, "optimizer=lamb", *plugin)


def test_sizes_are_read_from_config_json_alone(tmp_path):
    (tmp_path / "model.safetensors").touch()
    sizes = {"model_type": "bloom", "n_head": 6, "n_layer": 2}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    model = ("model=hf", f"model.path={tmp_path}", HYBRID)
    assert order_of(*RUN, *model, "plugin.tp_size=3").config.plugin.tp_size == 3
    with pytest.raises(ConfigError, match="Here num_attention_heads is 6"):
        order_of(*RUN, *model, "plugin.tp_size=4")
    with pytest.raises(ConfigError, match="at most the model's layers"):
        order_of(*RUN, *model, "plugin.pp_size=3")


@pytest.mark.parametrize(
    ("sizes", "more", "why"),
    [
        ({"model_type": "gemma"}, [], "it is gemma"),
        ({"model_type": "opt"}, [], "opt wants model.attention=eager"),
        ({"model_type": "falcon"}, ["plugin.tp_size=2"], "multi_query without new_decoder_architecture"),
        ({"model_type": "qwen2", "vocab_size": 151}, ["plugin.tp_size=2"], "vocab_size is 151"),
        ({"model_type": "qwen2", "use_sliding_window": True}, ["plugin.pp_size=2"], "leave the window out"),
        ({"model_type": "mistral"}, ["plugin.sp_size=2"], "not cut by positions in this way, all_to_all"),
        ({"model_type": "qwen2"}, ["plugin.sp_size=2"], "want model.attention=eager"),
        (
            {"model_type": "llama", "num_attention_heads": 2},
            ["plugin.tp_size=2", "plugin.sp_size=2", "model.attention=eager"],
            "heads is 2",
        ),
        ({"model_type": "mixtral", "sliding_window": 7}, ["plugin.pp_size=2"], "a token wider"),
    ],
)
def test_what_an_architecture_cannot_do_is_told_with_its_reason(tmp_path, sizes, more, why):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(ConfigError, match=why):
        order_of(*RUN, "model=hf", f"model.path={tmp_path}", HYBRID, *more)


def test_ranks_are_counted_again_when_they_start(run, capsys):
    run(*RUN, HYBRID, "plugin.tp_size=2", code=2)
    assert "multiple of plugin.tp_size * plugin.pp_size, with" in capsys.readouterr().out
