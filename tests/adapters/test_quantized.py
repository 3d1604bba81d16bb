"""Weights in 8 and 4 bits beside an adapter: their numbers, memory, checkpoints, what is saved and what is refused."""

import json
import math
import re
from functools import partial

import pytest
import torch
from adapters.small import RUN, llama, logits
from support import cut_back, numbers, order_of, random_pairs

from orpo_exp.adapters import ADAPTERS
from orpo_exp.export import export
from orpo_exp.layouts.shared import Packed
from orpo_exp.models import MODELS
from orpo_exp.models.pretrained import Quantization
from orpo_exp.plugins.whole import WholeModel
from orpo_exp.quantized import Int8Linear, NF4Linear, QuantizedLinear, parameter_count
from orpo_exp.schema import ConfigError
from orpo_exp.tracking.jsonl import read_metrics

KINDS = [Int8Linear, NF4Linear]
NAMES = ["int8", "nf4"]
# the 16 numbers of NormalFloat, to four digits: Dettmers et al. 2023, appendix E
NORMAL_FLOATS = [
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
    0.7230, 1.0,
]  # fmt: skip


def linear(rows=96, columns=320, dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    return torch.nn.Linear(columns, rows, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bits_are_the_rows_in_127_steps(dtype):
    plain = linear(dtype=dtype)
    weight = plain.weight.half().float()
    steps = weight.abs().amax(1, keepdim=True) / 127
    expected = (weight / steps).round() * steps
    found = Int8Linear(plain, filled=True).dequantized(torch.float32)
    close = (found - expected).abs() <= 1e-6
    assert close.float().mean() > 0.999  # in the middle of two steps rounding may go either way
    assert ((found - weight).abs() <= 0.501 * steps).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_4_bits_are_the_nearest_normal_floats_of_blocks_of_64(dtype):
    plain = linear(dtype=dtype)
    blocks = plain.weight.float().reshape(-1, 64)
    table, largest = torch.tensor(NORMAL_FLOATS), blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / largest)[..., None] - table).abs().argmin(-1)
    found = NF4Linear(plain, filled=True).dequantized(torch.float32).reshape(-1, 64)
    # 8 bits of a scale leave it within 2% of the farthest from their mean
    scale_error = 0.02 * (largest - largest.mean()).abs().max()
    off = (found - table[nearest] * largest).abs() <= scale_error + 1e-4 * largest
    assert off.float().mean() > 0.999


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_product_and_its_gradient_are_those_of_a_plain_layer(kind, autocast):
    layer = kind(linear(), filled=True)
    plain = linear()
    plain.weight.data = layer.dequantized(torch.float32)
    results = []
    for of in (layer, plain):
        inputs = torch.randn(2, 5, 320, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            product = of(inputs)
        (product.float() * torch.arange(96)).sum().backward()
        results.append((product, inputs.grad))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.equal(theirs)
    assert layer.double()(inputs.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_no_cast_touches_what_stands_for_weights_and_empty_layers_have_the_same_form(kind):
    layer = kind(linear(bias=False), filled=True)
    before = {name: of.clone() for name, of in layer.named_parameters()}
    layer.to(torch.bfloat16)
    empty = dict(kind(linear(bias=False), filled=False).named_parameters())
    assert before.keys() == empty.keys()
    for name, of in layer.named_parameters():
        assert of.equal(before[name])
        assert (of.shape, of.dtype) == (empty[name].shape, empty[name].dtype)
    assert parameter_count(layer) == 96 * 320


@pytest.mark.parametrize(("kind", "share"), [(Int8Linear, 0.51), (NF4Linear, 0.26)])
def test_the_bytes_are_a_half_and_a_quarter_of_those_of_16_bits(kind, share):
    layer = kind(linear(512, 512, torch.bfloat16, bias=False), filled=True)
    assert sum(of.nbytes for of in layer.parameters()) <= share * 2 * 512 * 512
    assert not list(layer.buffers())


def built(base, name, adapter="lora", **settings):
    """What a run trains, its float twin in plain peft, and the base with the numbers that the bits stand for."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    source = MODELS.named("hf")
    model = source(source.Config(path=str(base), quantization=Quantization[name])).prepare([], 0).build
    component = ADAPTERS.named(adapter)
    ours = component(component.Config(rank=4, alpha=8.0, **settings)).on(model, str(base), 0).whole()
    plain = AutoModelForCausalLM.from_pretrained(base)
    for key, of in ours.model.named_modules():
        if isinstance(of, QuantizedLinear):
            plain.get_submodule(key.removesuffix(".base_layer")).weight.data = of.dequantized(torch.float32)
    peft = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=adapter == "dora")
    return ours, get_peft_model(plain, peft).double()


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_plain_peft_beside_the_numbers_that_the_bits_stand_for(base, name, adapter):
    """To the rounding of log-probabilities, which are float32."""
    ours, plain = built(base, name, adapter)
    trained = {key: of for key, of in ours.model.named_parameters() if of.requires_grad}
    theirs = {key.removeprefix("base_model.model."): of for key, of in plain.named_parameters() if of.requires_grad}
    assert trained.keys() == theirs.keys()
    torch.manual_seed(5)
    for key, of in trained.items():
        if "magnitude" in key:  # these begin at the columns' lengths, of the numbers that the bits stand for
            torch.testing.assert_close(of.double(), theirs[key], rtol=1e-5, atol=0)
        of.data.add_(torch.randn(of.shape), alpha=0.1)
        theirs[key].data.copy_(of.data)

    pairs = random_pairs(3, 256)
    ours.model.double()
    batch = Packed(Packed.Config()).collate(pairs, frozenset())
    logps = WholeModel(ours, torch.device("cpu"), torch.float32).logps(batch)
    (logps.chosen.values.sum() - 2 * logps.rejected.values.sum()).backward()
    expected = []
    for pair in pairs:
        for answer, weight in ((pair.chosen_ids, 1.0), (pair.rejected_ids, -2.0)):
            ids = torch.cat([pair.prompt_ids, answer]).long()
            scores = plain(input_ids=ids[None]).logits[0, :-1].log_softmax(1)
            scores = scores.gather(1, ids[1:, None])[len(pair.prompt_ids) - 1 :, 0]
            scores.sum().mul(weight).backward()
            expected.append(scores.detach())
    torch.testing.assert_close(logps.chosen.values.double(), torch.cat(expected[::2]), rtol=1e-6, atol=1e-6)
    for key, of in trained.items():
        assert (of.grad - theirs[key].grad).abs().max() <= 1e-6 * theirs[key].grad.abs().max(), key
    assert all(of.grad is None for of in ours.model.parameters() if not of.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_and_one_that_is_cut_back_goes_on_bit_for_bit(run, base, name, capsys):
    command = ["+experiment=orpo", *RUN, "adapter=lora", f"model.quantization={name}", "train.save_every=5"]
    command += ["train.max_steps=10", "train.eval_every=10"]
    whole_run, folder = run(*command, folder="whole"), run(*command, folder="cut")
    cut_back(folder, 5)
    run(*command, folder="cut")
    assert numbers(folder) == numbers(whole_run)
    losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
    said = capsys.readouterr()
    whole, trained = re.search(r"([\d,]+) parameters, ([\d,]+) of them", said.out + said.err).groups()
    counted = int(whole.replace(",", "")) - int(trained.replace(",", ""))
    assert counted == sum(of.numel() for of in llama().parameters())


@pytest.mark.parametrize("name", NAMES)
def test_references_give_the_same_numbers(run, base, name, tmp_path):
    start = [*RUN, "adapter=lora", f"model.quantization={name}", "train.max_steps=10", "train.eval_every=5"]
    rows = {}
    for reference in ("base", "frozen", "cached"):
        more = [f"reference.folder={tmp_path / 'cache'}"] if reference == "cached" else []
        folder = run("+experiment=dpo_baseline", *start, f"reference={reference}", *more, folder=reference)
        rows[reference] = read_metrics(folder / "metrics.jsonl")
    assert rows["base"][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(rows["base"][-1]["loss"] - math.log(2)) > 0.02
    for reference in ("frozen", "cached"):
        for a, b in zip(rows["base"], rows[reference], strict=True):
            for metric in ("loss", "rewards/margin", "rewards/chosen"):
                assert b[metric] == pytest.approx(a[metric], rel=1e-5, abs=2e-6), (reference, metric, a["step"])


@pytest.mark.parametrize("keeps", ["nothing", "products"])
def test_blocks_that_are_computed_again_give_the_same(run, base, keeps):
    command = ["+experiment=orpo", *RUN, "adapter=lora", "model.quantization=nf4"]
    again = [*command, "model.gradient_checkpointing=true", f"model.gradient_checkpointing_keeps={keeps}"]
    rows = [read_metrics(run(*of, folder=str(len(of))) / "metrics.jsonl") for of in (command, again)]
    for a, b in zip(*rows, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
    assert rows[0][-1]["loss"] < rows[0][0]["loss"]


@pytest.mark.parametrize("precision", ["bf16", "bf16_weights"])
def test_weights_in_4_bits_stay_under_precisions_of_16(run, base, precision):
    plugin = ["plugin=zero2", f"plugin.precision={precision}", "model.dtype=bfloat16"]
    folder = run("+experiment=orpo", *RUN, "adapter=lora", "model.quantization=nf4", *plugin)
    losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("name", NAMES)
def test_merged_it_is_the_model_that_was_trained_and_alone_it_loads_in_peft(run, base, name, adapter, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    start = ["+experiment=orpo", *RUN, f"adapter={adapter}", "adapter.targets=[q_proj,up_proj]", "train.save_every=4"]
    start.append(f"model.quantization={name}")
    alone = run(*start, folder="alone")
    merged = run(*start, "adapter.merge=true", folder="merged")
    loaded = AutoModelForCausalLM.from_pretrained(merged / "model")
    # the same adapter beside the base with the numbers that the bits stand for
    ours, _ = built(base, name)
    with torch.no_grad():
        full = AutoModelForCausalLM.from_pretrained(base)
        for key, of in ours.model.named_modules():
            if isinstance(of, QuantizedLinear):
                full.get_submodule(key.removesuffix(".base_layer")).weight.copy_(of.dequantized(torch.float32))
    before = logits(AutoPeftModelForCausalLM.from_pretrained(alone / "model"))
    full.save_pretrained(base)
    beside = logits(AutoPeftModelForCausalLM.from_pretrained(alone / "model"))
    torch.testing.assert_close(logits(loaded), beside, rtol=1e-4, atol=1e-5)
    assert (beside - before).abs().max() > 1e-3  # what the base lost
    export(alone, tmp_path / "exported")
    assert logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "exported")).equal(beside)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["adapter=none"], "adapter"),
        (["adapter=lora", "adapter.init=pissa", "adapter.merge=true"], "adapter.init"),
        (["adapter=lora", "adapter.init=olora", "adapter.merge=true"], "adapter.init"),
        (["adapter=lora", "plugin=hybrid", "plugin.tp_size=2"], "plugin.tp_size"),
        (["adapter=lora", "plugin=gemini"], "adapter"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(base, monkeypatch, more, said):
    monkeypatch.chdir(base.parent)
    with pytest.raises(ConfigError) as refused:
        order_of("+experiment=orpo", *RUN, "model.quantization=nf4", *more)
    assert refused.value.key == said


def test_an_adapter_that_took_a_part_of_the_weights_is_refused(run, base):
    first = run("+experiment=orpo", *RUN, "adapter=lora", folder="first") / "model"
    more = ["adapter=existing", f"adapter.path={first}", "model.quantization=nf4"]
    run("+experiment=orpo", *RUN, *more, folder="second")
    settings = json.loads((first / "adapter_config.json").read_text())
    (first / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "pissa"}))
    with pytest.raises(ConfigError, match=r"adapter\.path"):
        order_of("+experiment=orpo", *RUN, *more)


def test_a_module_in_few_bits_is_not_trained_whole(run, base, capsys):
    run("+experiment=orpo", *RUN, "adapter=lora", "adapter.whole=[q_proj]", "model.quantization=nf4", code=2)
    shown = capsys.readouterr()
    assert "adapter.whole: given 'model.layers.0.self_attn.q_proj'" in shown.out + shown.err
    run("+experiment=orpo", *RUN, "adapter=lora", "adapter.whole=[lm_head]", "model.quantization=nf4", folder="head")


def test_an_installation_that_cannot_is_refused_by_name(run, base, monkeypatch, capsys):
    command = ["+experiment=orpo", *RUN, "adapter=lora", "model.quantization=nf4"]

    def broken(*_, **__):
        raise RuntimeError("no kernel")

    with monkeypatch.context() as patch:
        patch.setattr("bitsandbytes.functional.dequantize_4bit", broken)
        run(*command, code=2)
    shown = capsys.readouterr()
    assert "model.quantization: given 'nf4'; allowed: none where" in shown.out + shown.err
    assert "RuntimeError: no kernel" in shown.out + shown.err
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda _: None)
        run(*command, folder="none", code=2)
    assert "Install bitsandbytes" in capsys.readouterr().err


def test_an_architecture_without_linear_layers_is_refused(base):
    from transformers import GPT2Config, GPT2LMHeadModel

    source = MODELS.named("hf")(MODELS.named("hf").Config(path=str(base), quantization=Quantization.nf4))
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel, which has no linear layer"):
        source.quantize(model, filled=True)


def test_it_belongs_to_a_runs_identity_and_runs_from_before_keep_theirs(base, monkeypatch):
    monkeypatch.chdir(base.parent)
    order = partial(order_of, "+experiment=orpo", *RUN, "adapter=lora")
    plain = order().config
    assert "quantization" not in plain.numeric()["model"]
    assert plain.config_hash == order("model.quantization=none").config.config_hash
    assert len({of.config.config_hash for of in map(order, ["model.quantization=nf4", "seed=0"])}) == 2
