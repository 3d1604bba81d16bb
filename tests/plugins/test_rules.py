"""What plugins can be combined with: every rule has a command that breaks it, and stands in the README."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from support import order_of

from orpo_exp.plugins import PLUGINS
from orpo_exp.plugins.architectures import ARCHITECTURES
from orpo_exp.runs.order import RunOrder
from orpo_exp.schema import ConfigError

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
RUN = ("+experiment=quickstart", "train.max_steps=2")
HYBRID = "plugin=hybrid"
SMALL_MOVES = ["plugin.precision=bf16_weights", "loss=dpo", "reference=synced", "reference.mix=0.5"]
LORA = ["adapter=lora", "adapter.merge=true"]

# plugin, number of its rule -> overrides that break this rule alone
BREAKS = {
    ("gemini", 0): ["plugin.placement_policy=auto", "plugin.shard_param_frac=0.5"],
    ("gemini", 1): ["plugin.placement_policy=auto", "plugin.offload_optim_frac=1.0"],
    ("gemini", 2): ["plugin.placement_policy=auto", "plugin.offload_param_frac=0.5"],
    ("gemini", 3): ["plugin.warmup_non_model_data_ratio=0.5"],
    ("gemini", 4): ["plugin.steady_cuda_cap_ratio=0.5"],
    ("gemini", 5): ["plugin.offload_param_frac=0.5"],
    ("gemini", 6): ["optimizer=fused_adam", "plugin.offload_optim_frac=0.5"],
    ("gemini", 7): SMALL_MOVES,
    ("gemini", 8): LORA,
    **{(zero, 0): ["optimizer=came"] for zero in ("zero1", "zero2", "zero2_offload")},
    **{(zero, 1): SMALL_MOVES for zero in ("zero1", "zero2", "zero2_offload")},
    ("hybrid", 0): [],  # where another transformers is installed
    ("hybrid", 1): ["plugin.tp_size=2", "processes=3"],
    ("hybrid", 2): ["plugin.tp_size=2", "plugin.sp_mode=ring"],
    ("hybrid", 3): ["plugin.zero_stage=1"],
    ("hybrid", 4): ["plugin.zero_stage=2", "plugin.pp_size=2", "plugin.precision=bf16_weights"],
    ("hybrid", 5): ["plugin.cpu_offload=true"],
    ("hybrid", 6): ["model.arch=qwen3"],
    ("hybrid", 7): ["plugin.tp_size=3"],
    ("hybrid", 8): ["plugin.tp_size=2", *LORA],
    ("hybrid", 9): ["plugin.pp_size=99"],
    ("hybrid", 10): ["plugin.pp_size=2", "plugin.layers_per_stage=[1,2]"],
    ("hybrid", 11): ["plugin.tp_size=2", "optimizer=galore"],
    ("hybrid", 12): SMALL_MOVES,
}

OPTIMIZERS = sorted(file.stem for file in (Path(__file__).parents[2] / "conf" / "optimizer").glob("*.yaml"))
NAMES = sorted(file.stem for file in (Path(__file__).parents[2] / "conf" / "plugin").glob("*.yaml"))


def table() -> list[str]:
    """The README's rows, from what the plugins declare."""
    rows = []
    for name in NAMES:
        plugin = PLUGINS.named(name)
        precisions = ", ".join(sorted(precision.value for precision in plugin.precisions))
        rows.append(f"| `{name}` | `plugin.precision` | {precisions} |")
        rows += [f"| `{name}` | `{rule.key}` | {rule.allowed} |" for rule in plugin.rules]
    return rows


def test_the_readme_has_every_rule():
    missing = [row for row in table() if row not in README]
    assert not missing, "\n".join(table())


def test_every_rule_of_every_plugin_has_a_command_that_breaks_it():
    declared = {(name, number) for name in NAMES for number in range(len(PLUGINS.named(name).rules))}
    assert BREAKS.keys() == declared


@pytest.mark.parametrize(("name", "number"), BREAKS)
def test_what_breaks_a_rule_is_refused_by_it(name, number, monkeypatch):
    rule = PLUGINS.named(name).rules[number]
    if (name, number) == ("hybrid", 0):
        monkeypatch.setattr("orpo_exp.plugins.hybrid_config.version", {"transformers": "4.57.1"}.get)
    with pytest.raises(ConfigError) as refused:
        order_of(*RUN, f"plugin={name}", *BREAKS[name, number])
    assert (refused.value.key, refused.value.allowed) == (rule.key, rule.allowed)
    assert refused.value.do.startswith(rule.do)


@pytest.mark.parametrize("name", NAMES)
def test_a_precision_that_a_plugin_does_not_have_is_refused(name):
    for precision in ("fp32", "tf32", "bf16", "fp16", "bf16_weights", "fp16_weights"):
        known = precision in {of.value for of in PLUGINS.named(name).precisions}
        with nullcontext() if known else pytest.raises(ConfigError, match=r"plugin\.precision"):
            order_of(*RUN, f"plugin={name}", f"plugin.precision={precision}")


# optimizer -> why it is refused, where parameters are cut, where they are offloaded as well, and in Gemini's chunks
CUT = {"adafactor": "whole rows and columns", "came": "whole rows and columns", "galore": "whole gradients"}
CHUNKS = dict.fromkeys((*CUT, "lamb"), "")  # its rule says it for all of them: they are cut through parameters
OFFLOADED = {**CUT, "lamb": "by way of the GPUs", "fused_adam": "only what lies on a GPU"}
UPDATED = {
    "zero1": (["plugin=zero1"], CUT),
    "zero2": (["plugin=zero2"], CUT),
    "zero2_offload": (["plugin=zero2_offload"], OFFLOADED),
    "tensor": ([HYBRID, "plugin.tp_size=2"], CUT),
    "hybrid with ZeRO": ([HYBRID, "plugin.zero_stage=1", "plugin.precision=bf16_weights"], CUT),
    "offloaded": (
        [HYBRID, "plugin.zero_stage=1", "plugin.precision=bf16_weights", "plugin.cpu_offload=true"],
        OFFLOADED,
    ),
    "stages": ([HYBRID, "plugin.pp_size=2"], {}),
    "ddp": (["plugin=ddp"], {}),
    "gemini": (["plugin=gemini"], CHUNKS),
    "gemini, offloaded": (["plugin=gemini", "plugin.placement_policy=auto"], {**CHUNKS, "fused_adam": ""}),
}


@pytest.mark.parametrize("where", UPDATED)
def test_an_optimizer_is_refused_with_its_reason_where_it_cannot_update(where):
    plugin, reasons = UPDATED[where]
    for optimizer in OPTIMIZERS:
        if optimizer not in reasons:
            order_of(*RUN, *plugin, f"optimizer={optimizer}")
            continue
        with pytest.raises(ConfigError, match=f"optimizer: given '{optimizer}'.* Choose .*{reasons[optimizer]}"):
            order_of(*RUN, *plugin, f"optimizer={optimizer}")


TENSOR, STAGES = ["plugin.tp_size=2"], ["plugin.pp_size=2"]
# contents of a config.json, overrides, the reason that is told
NOT_CARRIED = [
    ({"model_type": "gemma"}, [], "it is gemma"),
    ({"model_type": "cohere"}, [], "it is cohere"),
    ({"model_type": "opt"}, [], "opt wants model.attention=eager"),
    ({"model_type": "opt", "tie_word_embeddings": False}, ["model.attention=eager", *TENSOR], "ColossalAI ties them"),
    ({"model_type": "falcon"}, TENSOR, "multi_query without new_decoder_architecture cannot be cut so: .* leaves it"),
    ({"model_type": "falcon", "multi_query": False, "alibi": True}, TENSOR, "alibi cannot be cut so: .* slopes"),
    ({"model_type": "qwen2", "use_sliding_window": True}, STAGES, "use_sliding_window .* leave the window out"),
    ({"model_type": "mistral"}, ["plugin.sp_size=2"], "not cut by positions in this way, all_to_all"),
    ({"model_type": "qwen2"}, ["plugin.sp_size=2"], "want model.attention=eager"),
    ({"model_type": "mixtral", "sliding_window": 7}, STAGES, "a sliding_window cannot be cut so: .* a token wider"),
]
DIVIDED = [  # model type, its names of the sizes that tensor parallelism divides
    ("llama", ["num_attention_heads", "num_key_value_heads", "intermediate_size"]),
    ("mistral", ["num_attention_heads", "num_key_value_heads", "intermediate_size"]),
    ("qwen2", ["num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"]),
    ("mixtral", ["num_attention_heads", "num_key_value_heads", "num_local_experts", "vocab_size"]),
    ("falcon", ["num_attention_heads", "num_kv_heads", "ffn_hidden_size"]),
    ("opt", ["num_attention_heads", "ffn_dim"]),
    ("bloom", ["n_head"]),
    ("gptj", ["n_head", "n_inner"]),
]


def order_with(folder: Path, config: dict[str, object], *overrides: str) -> RunOrder:
    """A run by hybrid of a model of which there is nothing but this config.json."""
    (folder / "model.safetensors").touch()
    (folder / "config.json").write_text(json.dumps(config))
    return order_of(*RUN, "model=hf", f"model.path={folder}", HYBRID, *overrides)


@pytest.mark.parametrize(("config", "more", "why"), NOT_CARRIED)
def test_what_an_architecture_cannot_do_is_told_with_its_reason(tmp_path, config, more, why):
    with pytest.raises(ConfigError, match=f"Choose plugin=zero2, say. Here .*{why}"):
        order_with(tmp_path, config, *more)


def test_every_limit_of_an_architecture_is_broken_above():
    for name, architecture in ARCHITECTURES.items():
        reasons = [why for config, _, why in NOT_CARRIED if config["model_type"] == name]
        for limit in (*architecture.not_tensor, *architecture.not_staged):
            assert any(limit.what in why or why in limit.why for why in reasons), (name, limit.what)
        assert architecture.attention is None or any("model.attention" in why for why in reasons), name
        divided = next(sizes for kind, sizes in DIVIDED if kind == name)
        assert [sum(size in names for size in divided) for names in architecture.divided] == [1] * len(divided), name


@pytest.mark.parametrize(("kind", "sizes"), DIVIDED)
def test_each_size_that_is_cut_must_be_divided(tmp_path, kind, sizes):
    even = {"model_type": kind, "multi_query": False} | dict.fromkeys(sizes, 6)
    more = ["model.attention=eager", *TENSOR]
    assert order_with(tmp_path, even, *more).config.plugin.tp_size == 2
    for size in sizes:
        with pytest.raises(ConfigError, match=r"plugin\.tp_size: given 2; .* Choose another one, .* Here \w+ is 7\."):
            order_with(tmp_path, even | {size: 7}, *more)


def test_ranks_that_share_positions_share_the_heads_too(tmp_path):
    heads = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 4}
    more = [*TENSOR, "plugin.sp_size=2", "model.attention=eager"]
    order_with(tmp_path, heads, *more, "plugin.sp_mode=ring")
    with pytest.raises(ConfigError, match="Here num_attention_heads is 2"):
        order_with(tmp_path, heads, *more)


def test_layers_are_counted_in_config_json(tmp_path):
    for name in ("num_hidden_layers", "n_layer"):
        layers = {"model_type": "llama", name: 3}
        assert order_with(tmp_path, layers, *STAGES, "plugin.layers_per_stage=[1,2]").config.plugin.pp_size == 2
        with pytest.raises(ConfigError, match=r"plugin\.pp_size: given 4; .* Choose fewer stages"):
            order_with(tmp_path, layers, "plugin.pp_size=4")
        for wrong in ("[2,2]", "[3]", "[0,3]"):
            with pytest.raises(ConfigError, match=r"plugin\.layers_per_stage: .* Set plugin\.layers_per_stage=null"):
                order_with(tmp_path, layers, *STAGES, f"plugin.layers_per_stage={wrong}")


def test_ranks_are_counted_again_when_they_start(run, capsys):
    run(*RUN, HYBRID, "plugin.tp_size=2", code=2)
    assert "multiple of plugin.tp_size * plugin.pp_size, with" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tf32_is_refused_without_a_gpu(run, capsys):
    run(*RUN, "plugin=zero1", "plugin.precision=tf32", code=2)
    assert "fp32, bf16 or fp16 on a machine without a GPU. Choose plugin.precision=fp32." in capsys.readouterr().out
