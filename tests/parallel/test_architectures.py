"""Every architecture that the hybrid plugin carries: curve, samples and weights of ddp on one process.

All parameters are random, biases and norms too, so that a wrong one shows; the vocabulary is odd where it may be.
`uv run pytest -m slow`.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import order_of, run_all, uneven_rows

from orpo_exp.models.tokenizers import bytes_tokenizer
from orpo_exp.plugins import start_ranks
from orpo_exp.plugins.architectures import ARCHITECTURES
from orpo_exp.runs.order import RunOrder
from orpo_exp.tracking.jsonl import read_metrics

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 301}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 96}
SMOOTH = {"activation_function": "gelu"}  # at the kink of OPT's own relu rounding decides over a gradient
MODELS = {  # Hugging Face's model type, what its configuration is given
    "llama": ("llama", {**GROUPED, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**GROUPED, "tie_word_embeddings": True, "sliding_window": 7}),
    "qwen2": ("qwen2", {**GROUPED, "tie_word_embeddings": True, "vocab_size": 300}),
    "mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4, "vocab_size": 300}),
    "falcon": ("falcon", {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon-rw": ("falcon", {**SIZES, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}),
    "opt": ("opt", {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False, **SMOOTH}),
    "bloom": ("bloom", SIZES),
    "gptj": ("gptj", {**SIZES, "rotary_dim": 8}),
}
NOT_TENSOR = {"falcon-rw"}
# ranks that share every matrix, stages, how positions are shared
TWO = [(2, 1, None), (1, 2, None), (2, 1, "split_gather"), (2, 1, "ring"), (1, 1, "all_to_all")]
FOUR = [(2, 2, None), (2, 2, "split_gather"), (2, 2, "ring"), (1, 2, "all_to_all")]
STARTS = [  # ranks, models, splits for which they are started once
    pytest.param(2, MODELS.keys(), TWO, id="2 ranks"),
    pytest.param(4, MODELS.keys() - NOT_TENSOR, FOUR, id="4 ranks"),
]
BASE = (
    "model=hf", "data=json", "data.path=pairs.jsonl", "data.eval_size=3", "loss=orpo", "train.global_batch_size=8",
    "train.micro_batch_size=3", "train.max_steps=3", "train.epochs=1", "train.eval_every=2", "train.samples=2",
    "train.sample_tokens=6", "train.max_grad_norm=null", "scheduler=constant", "optimizer=sgd", "optimizer.lr=1e-2",
    "tracker=[]",
)  # fmt: skip
EAGER = ("opt", "bloom", "gptj")  # the only kernel of these
LORA = ("adapter=lora", "adapter.merge=true", "optimizer.lr=1e-1")


def make_model(folder: Path, kind: str, sizes: dict) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[kind](**sizes, pad_token_id=None, bos_token_id=1, eos_token_id=2)
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.15 if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
                parameter.add_(1)
    model.save_pretrained(folder, safe_serialization=True)
    bytes_tokenizer().save_pretrained(folder)


def order_for(folder: Path, name: str, *plugin: str) -> RunOrder:
    kernel = "eager" if MODELS[name][0] in EAGER or "plugin.sp_size=2" in plugin else "sdpa"
    path = folder.parent / "models" / name
    made = order_of(*BASE, *plugin, f"model.attention={kernel}", f"model.path={path}")
    return replace(made, folder=folder / name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Where the models lie, and all runs: <split>/<model>; those of ddp on one process are there."""
    folder = tmp_path_factory.mktemp("architectures")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(24)))
    for name, (kind, sizes) in MODELS.items():
        make_model(folder / "models" / name, kind, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        alone = [order_for(folder / "ddp", name, "plugin=ddp") for name in MODELS]
        alone += [order_for(folder / "ddp lora", name, "plugin=ddp", *LORA) for name in MODELS]
        assert start_ranks(1, run_all, alone) == 0
    return folder


def test_every_architecture_is_tried():
    assert {kind for kind, _ in MODELS.values()} == ARCHITECTURES.keys()


def carried(name: str, tensor: int, sequence: str | None) -> bool:
    modes = {mode.value for mode in ARCHITECTURES[MODELS[name][0]].sequence}
    return (tensor == 1 or name not in NOT_TENSOR) and (sequence is None or sequence in modes)


@pytest.mark.parametrize(("ranks", "models", "splits"), STARTS)
def test_curve_samples_and_weights_are_those_of_ddp_on_one_process(runs, ranks, models, splits, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    orders = []
    for tensor, stages, sequence in splits:
        plugin = ["plugin=hybrid", f"plugin.tp_size={tensor}", f"plugin.pp_size={stages}"]
        plugin += [f"plugin.sp_mode={sequence}", "plugin.sp_size=2"] if sequence else []
        place = runs / f"tp{tensor} x pp{stages} x {sequence}"
        orders += [order_for(place, name, *plugin) for name in sorted(models) if carried(name, tensor, sequence)]
    assert start_ranks(ranks, run_all, orders) == 0
    for order in orders:
        check(order.folder, runs / "ddp" / order.folder.name)


def test_an_adapter_is_carried_by_stages_of_every_architecture(runs, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plugin = ["plugin=hybrid", "plugin.pp_size=2"]
    orders = [order_for(runs / "pp2 lora", name, *plugin, *LORA) for name in MODELS]
    assert start_ranks(2, run_all, orders) == 0
    for order in orders:
        check(order.folder, runs / "ddp lora" / order.folder.name)


def check(ours: Path, theirs: Path) -> None:
    """That two runs came to the same."""
    for a, b in zip(read_metrics(theirs / "metrics.jsonl"), read_metrics(ours / "metrics.jsonl"), strict=True):
        assert a.keys() == b.keys()
        for metric in a:
            if metric.endswith("loss") or metric == "grad_norm":
                assert b[metric] == pytest.approx(a[metric], rel=1e-4), (ours, metric, a["split"], a["step"])
    (words, margins), (their_words, their_margins) = read_page(ours), read_page(theirs)
    assert words == their_words, ours
    assert margins == pytest.approx(their_margins, rel=1e-3), ours  # four digits are written: the last may be rounded
    torch.testing.assert_close(logits(ours / "model"), logits(theirs / "model"), rtol=1e-4, atol=1e-4)


def read_page(folder: Path) -> tuple[str, list[float]]:
    """What samples.md says: its text, and the margins of the pairs that are most wrong."""
    margin = re.compile(r"(?<=, margin )\S+")
    page = (folder / "samples.md").read_text()
    return margin.sub("", page), [float(number) for number in margin.findall(page)]


def logits(folder: Path) -> torch.Tensor:
    """Of a model as it is loaded by someone else."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    assert not any(told.values()), told
    with torch.no_grad():
        return model(torch.arange(3, 43).view(2, 20)).logits
