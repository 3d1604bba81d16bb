"""Adapters: their gradients, what is saved and loads elsewhere, references for nothing, what is refused."""

import json

import pytest
import safetensors.torch
import torch
from adapters.small import RUN, llama, logits
from omegaconf import OmegaConf
from support import cut_back, numbers, random_pairs

from orpo_exp.adapters import ADAPTERS
from orpo_exp.adapters.peft import WEIGHTS
from orpo_exp.export import export
from orpo_exp.layouts.shared import Packed
from orpo_exp.models.head import finish_logits
from orpo_exp.models.scratch import bytes_tokenizer
from orpo_exp.models.segments import Attend, take_segments
from orpo_exp.plugins.whole import WholeModel
from orpo_exp.schema import Refused
from orpo_exp.tracking.jsonl import read_metrics
from orpo_exp.types import Builder, BuiltModel


def made(name, **settings):
    component = ADAPTERS.named(name)
    return component(component.Config(**settings))


def whole(adapter, seed=0):
    model = llama()
    built = BuiltModel(model, finish_logits(model.config))
    take_segments(model, Attend)
    return adapter.on(Builder(lambda: built, lambda: built), "base", seed).whole()


@pytest.mark.parametrize("name", ["lora", "dora", "rslora"])
@pytest.mark.parametrize("more", [{}, {"whole": ["lm_head"]}, {"targets": ["q_proj", "down_proj"]}])
def test_the_gradient_is_that_of_plain_peft_and_autograd(name, more):
    from peft import LoraConfig, get_peft_model

    adapter = made(name, rank=4, alpha=8.0, **more)
    ours = whole(adapter)
    peft = LoraConfig(
        r=4, lora_alpha=8, target_modules=more.get("targets", "all-linear"), modules_to_save=more.get("whole"),
        use_dora=name == "dora", use_rslora=name == "rslora",
    )  # fmt: skip
    plain = get_peft_model(llama(), peft).double()
    torch.manual_seed(5)
    trained = {name: of for name, of in ours.model.named_parameters() if of.requires_grad}
    theirs = {name.removeprefix("base_model.model."): of for name, of in plain.named_parameters() if of.requires_grad}
    assert trained.keys() == theirs.keys()
    for key, of in trained.items():  # the one matrix begins at zero, where the other's gradient is
        of.data.add_(torch.randn(of.shape), alpha=0.1)
        theirs[key].data.copy_(of.data)

    pairs = random_pairs(3, 256)
    batch = Packed(Packed.Config()).collate(pairs, frozenset())
    ours.model.double()  # but for the log-probabilities, which are float32
    logps = WholeModel(ours, torch.device("cpu"), torch.float32).logps(batch)
    (logps.chosen.values.sum() - 2 * logps.rejected.values.sum()).backward()
    for pair in pairs:
        for answer, weight in ((pair.chosen_ids, 1.0), (pair.rejected_ids, -2.0)):
            ids = torch.cat([pair.prompt_ids, answer]).long()
            scores = plain(input_ids=ids[None]).logits[0, :-1].log_softmax(1)
            scores.gather(1, ids[1:, None])[len(pair.prompt_ids) - 1 :].sum().mul(weight).backward()
    for key, of in trained.items():
        assert (of.grad - theirs[key].grad).abs().max() <= 1e-6 * theirs[key].grad.abs().max(), key
    assert all(of.grad is None for of in ours.model.parameters() if not of.requires_grad)


@pytest.mark.parametrize("name", [pytest.param("lora", marks=pytest.mark.versions), "dora", "rslora"])
def test_what_is_saved_loads_in_peft_and_merged_in_transformers_with_the_same_logits(run, base, name):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    more = ["adapter.whole=[lm_head]"] if name == "lora" else []
    alone = run("+experiment=orpo", *RUN, f"adapter={name}", *more, folder="alone") / "model"
    merged = run("+experiment=orpo", *RUN, f"adapter={name}", "adapter.merge=true", *more, folder="merged") / "model"
    assert not (alone / "model.safetensors").exists()
    assert json.loads((alone / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    ours = logits(AutoPeftModelForCausalLM.from_pretrained(alone))
    theirs = logits(AutoModelForCausalLM.from_pretrained(merged))
    before = logits(AutoModelForCausalLM.from_pretrained(base))
    assert (ours - before).abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(alone).eos_token_id == 2


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_run_goes_on_from_an_adapter_of_before(run, base, name):
    first = run("+experiment=orpo", *RUN, f"adapter={name}", folder="first") / "model"
    second = run("+experiment=orpo", *RUN, "adapter=existing", f"adapter.path={first}", folder="second")
    last = [row for row in read_metrics(first.parent / "metrics.jsonl") if row["split"] == "eval"][-1]
    begun = next(row for row in read_metrics(second / "metrics.jsonl") if row["split"] == "eval")
    assert begun["loss"] == pytest.approx(last["loss"], rel=1e-6)


def test_the_base_stays_what_it_was_and_a_checkpoint_holds_the_adapter_alone(run, base):
    folder = run("+experiment=orpo", *RUN, "adapter=lora", "adapter.rank=2", "train.save_every=2")
    held = safetensors.torch.load_file(folder / "checkpoints" / "step-00000004" / "policy.safetensors")
    assert all("lora_" in name for name in held)
    cut_back(folder, 2)
    former = numbers(folder)
    run("+experiment=orpo", *RUN, "adapter=lora", "adapter.rank=2", "train.save_every=2")
    assert numbers(folder)[: len(former)] == former


@pytest.mark.versions
def test_a_run_that_is_cut_back_goes_on_bit_for_bit(run, base):
    command = ["+experiment=orpo", *RUN, "adapter=lora", "train.save_every=2"]
    whole_run, folder = run(*command, folder="whole"), run(*command, folder="cut")
    cut_back(folder, 2)
    run(*command, folder="cut")
    assert numbers(folder) == numbers(whole_run)


def test_a_checkpoint_of_another_base_is_refused(run, base, capsys):
    command = ["+experiment=orpo", *RUN, "adapter=lora", "train.save_every=2"]
    folder = run(*command)
    cut_back(folder, 2)
    llama(seed=1).save_pretrained(base)
    run(*command, code=2)
    assert "the starting model" in json.loads((folder / "result.json").read_text())["error"]


def test_embeddings_that_are_trained_whole_stay_tied_to_the_head(run, base):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    llama(tie_word_embeddings=True).save_pretrained(base)
    command = ["+experiment=orpo", *RUN, "adapter=lora", "adapter.whole=[embed_tokens]", "train.save_every=2"]
    alone = run(*command, folder="alone")
    merged = run(*command, "adapter.merge=true", folder="merged")
    theirs = AutoModelForCausalLM.from_pretrained(merged / "model")
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    assert (theirs.lm_head.weight - llama(tie_word_embeddings=True).lm_head.weight).abs().max() > 1e-2
    ours = logits(AutoPeftModelForCausalLM.from_pretrained(alone / "model"))
    torch.testing.assert_close(ours, logits(theirs), rtol=1e-4, atol=1e-5)
    last = [row for row in read_metrics(alone / "metrics.jsonl") if row["split"] == "eval"][-1]
    again = run(
        "+experiment=orpo",
        *RUN,
        f"model.path={merged / 'model'}",
        "train.max_steps=1",
        "data.eval_size=3",
        folder="again",
    )
    first = next(row for row in read_metrics(again / "metrics.jsonl") if row["split"] == "eval")
    assert first["loss"] == pytest.approx(last["loss"], rel=1e-5)
    former = numbers(alone)
    cut_back(alone, 2)
    run(*command, folder="alone")
    assert numbers(alone) == former

    run("+experiment=orpo", *RUN, "adapter=lora", "adapter.whole=[lm_head]", code=2)


@pytest.mark.parametrize(
    "more", [["adapter=lora"], ["adapter=dora", "adapter.whole=[lm_head]"], ["adapter=lora", "plugin=zero2"]]
)
def test_a_checkpoint_is_exported_in_pefts_form(run, base, more, tmp_path):
    from peft import AutoPeftModelForCausalLM

    folder = run("+experiment=orpo", *RUN, *more, "train.save_every=2")
    export(folder, tmp_path / "exported")
    ours, theirs = (
        logits(AutoPeftModelForCausalLM.from_pretrained(of)) for of in (folder / "model", tmp_path / "exported")
    )
    assert ours.equal(theirs)


def test_new_tokens_are_saved_with_the_adapter(run, base):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    larger = bytes_tokenizer()
    larger.add_tokens([f"<{i}>" for i in range(9)])
    larger.save_pretrained(base)
    command = ["+experiment=orpo", *RUN, "adapter=lora"]
    run(*command, code=2)
    alone = run(*command, "model.resize_embeddings=true", folder="alone") / "model"
    merged = run(*command, "model.resize_embeddings=true", "adapter.merge=true", folder="merged") / "model"
    theirs = AutoModelForCausalLM.from_pretrained(merged)
    assert theirs.config.vocab_size == len(larger)
    ours = AutoPeftModelForCausalLM.from_pretrained(alone)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=tiny", "adapter=lora"], "adapter.merge"),
        (["adapter=lora", "adapter.init=pissa"], "adapter.merge"),
        (["adapter=lora", "adapter.targets=[q_prjo]"], "q_proj"),
        (["adapter=lora", "adapter.whole=[heads]"], "lm_head"),
        (["adapter=lora", "adapter.targets=[all-linear,q_proj]"], "adapter.targets"),
        (["adapter=lora", "adapter.dropout=0.1", "loss=orpo_colossalchat"], "adapter.dropout"),
        (["adapter=existing", "adapter.path=base"], "adapter_model.safetensors"),
        (["loss=dpo", "reference=base"], "reference=frozen"),
        (["adapter=lora", "plugin=hybrid", "plugin.tp_size=2", "processes=2"], "plugin.tp_size"),
    ],
)
def test_what_does_not_go_together_is_refused(run, base, capsys, overrides, said):
    given = [of for of in RUN if not ("model=tiny" in overrides and of.startswith("model"))]
    run("+experiment=orpo", *given, *overrides, code=2)
    shown = capsys.readouterr()
    assert said in shown.out + shown.err


def test_the_rate_is_that_of_adapters_where_none_is_given(run, base):
    folder = run("+experiment=orpo", *[of for of in RUN if "lr" not in of], "adapter=lora")
    assert "lr: 8.0e-05" in (folder / "config.yaml").read_text()


def test_the_log_says_how_much_is_trained(run, base, capsys):
    run("+experiment=orpo", *RUN, "adapter=lora", "adapter.rank=1", "adapter.dropout=0.1")
    said = capsys.readouterr()
    assert "of them trained (" in said.out + said.err
    assert "adapter.dropout is above 0" in said.out + said.err


def test_the_papers_settings_for_a_7b_model_run_with_another_in_its_place(run, base):
    folder = run(
        "+experiment=orpo_mistral_7b", *[of for of in RUN if not of.startswith(("train.global", "sch", "opt"))]
    )
    config = OmegaConf.load(folder / "config.yaml")
    assert (config.optimizer.lr, config.scheduler.warmup, config.train.epochs, config.loss.lam) == (5e-6, 200, 5, 0.1)
    assert (config.train.global_batch_size, config.data.max_length, config.choices.scheduler) == (
        32,
        2048,
        "inverse_sqrt",
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_modules_are_trained_whole_beside_weights_of_16_bits(run, base, precision, module):
    more = ["model.dtype=bfloat16", f"adapter.whole=[{module}]", f"plugin.precision={precision}", "train.save_every=2"]
    folder = run("+experiment=orpo", *RUN, "adapter=lora", *more)
    types = {name: of.dtype for name, of in safetensors.torch.load_file(folder / "model" / WEIGHTS).items()}
    assert {of for name, of in types.items() if "lora_" in name} == {torch.float32}
    assert {of for name, of in types.items() if "lora_" not in name} == {torch.bfloat16}


def test_an_adapter_beside_weights_that_it_rewrote_is_not_exported(run, base, tmp_path):
    folder = run(
        "+experiment=orpo", *RUN, "adapter=lora", "adapter.init=olora", "adapter.merge=true", "train.save_every=2"
    )
    with pytest.raises(Refused, match="began by olora"):
        export(folder, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
