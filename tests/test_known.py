"""Data sets and models by name: each is what its file says, and runs with a small folder of its form in its place."""

import math
import re
from itertools import cycle
from pathlib import Path

import pytest
from data.test_files import hub_set
from omegaconf import OmegaConf
from support import order_of

from orpo_exp import experiment
from orpo_exp.data import DATA
from orpo_exp.data.tokenize import prepare
from orpo_exp.models.tokenizers import bytes_tokenizer
from orpo_exp.tracking.jsonl import read_metrics
from orpo_exp.types import PreferencePair

CONF = Path(__file__).parents[1] / "conf"


def built_on(group: str, option: str) -> dict[str, dict]:
    """The options of a group that build on this one, and what each sets."""
    files = {file.stem: OmegaConf.to_container(OmegaConf.load(file)) for file in sorted((CONF / group).glob("*.yaml"))}
    return {name: content for name, content in files.items() if content.pop("defaults")[0] == option}


SETS, MODELS = built_on("data", "hub"), built_on("model", "hf")

# one of each family: name -> type of model, and what its kind has besides sizes
LIKE = {
    "qwen2.5_0.5b": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3_0.6b": ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
    "llama3.1_8b": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            }
        },
    ),
    "mistral_7b_v0.1": ("mistral", {"sliding_window": 64}),
    "smollm2_135m": ("llama", {"tie_word_embeddings": True}),
}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
# marks around turns, as Qwen's tokenizers bring them; and Qwen3's empty thoughts before the last answer
THOUGHTS = "{% if loop.last and message.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
MARKED = (
    "{% for message in messages %}<|{{ message.role }}|>\nTHOUGHTS{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEMPLATES = {"qwen2": MARKED.replace("THOUGHTS", ""), "qwen3": MARKED.replace("THOUGHTS", THOUGHTS)}


def turns(*said: str) -> list[dict[str, str]]:
    """A conversation in the order of the hub's keys."""
    return [{"content": text, "role": ("user", "assistant")[i % 2]} for i, text in enumerate(said)]


def asked(number: int) -> list[str]:
    """What comes before the answers: a question, an answer to it, a question."""
    return [f"What is {number} + 1?", f"It is {number + 1}.", f"And {number} + 2?"]


def ultrafeedback(number: int) -> dict[str, object]:
    prompt, good, bad = asked(number)[0], f"{number + 1}", f"Not {number}."
    scores = {"score_chosen": 8.0, "score_rejected": 3.5}
    chosen, rejected = turns(prompt, good), turns(prompt, bad)
    return {
        "prompt": prompt,
        "prompt_id": f"{number:x}",
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
    } | scores


def hh(number: int) -> dict[str, object]:
    def transcript(answer: str) -> str:
        speakers = ("Human", "Assistant", "Human", "Assistant")
        said = zip(speakers, [*asked(number), answer], strict=True)
        return "".join(f"\n\n{who}: {text}" for who, text in said)

    return {"chosen": transcript(f"{number + 2}"), "rejected": transcript("I will not say.")}


def orca(number: int) -> dict[str, object]:
    system = "" if number == 0 else "You are good at sums."
    answers = {"chosen": f"{number + 1}", "rejected": f"Sure! Let us think about {number}."}
    return {"system": system, "question": asked(number)[0]} | answers


def capybara(number: int) -> dict[str, object]:
    first, answer, second = asked(number)
    return {
        "source": "sums",
        "conversation": [{"input": first, "output": answer}, {"input": second, "output": f"{number + 2}"}],
        "original_response": f"{number + 2}",
        "prompt": f"{first} {answer} {second}",  # not to be taken for a question of its own
        "chosen": turns(*asked(number), f"{number + 2}"),
        "rejected": turns(*asked(number), "No idea."),
        "rating_chosen": 5,
        "rating_rejected": 2,
    }


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


ONE = (user(asked(1)[0]),)
TWO = (*ONE, {"role": "assistant", "content": asked(1)[1]}, user(asked(1)[2]))
# name -> a row by its number, the splits that there are, and the pair in row 1: prompt, chosen, rejected
ROWS = {
    "ultrafeedback_binarized": (
        ultrafeedback, ("train_prefs", "test_prefs", "train_sft", "test_sft"), (ONE, "2", "Not 1."),
    ),
    "hh_rlhf": (hh, ("train", "test"), (TWO, "3", "I will not say.")),
    "orca_dpo_pairs": (
        orca, ("train",),
        (({"role": "system", "content": "You are good at sums."}, *ONE), "2", "Sure! Let us think about 1."),
    ),
    "capybara": (capybara, ("train",), (TWO, "3", "No idea.")),
}  # fmt: skip


def small_set(name: str, folder: Path) -> str:
    """A folder in the hub's form with the columns and splits of a data set: 10 rows to train on, 4 in other splits."""
    row, splits, _ = ROWS[name]
    return hub_set(folder, **{split: [row(i) for i in range(10 if split == splits[0] else 4)] for split in splits})


def small_model(name: str, folder: Path) -> str:
    """A folder with a model of the same architecture."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    arch, own = LIKE[name]
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = TEMPLATES.get(arch)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    sizes = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 1024, "vocab_size": len(tokenizer)}
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[arch](**sizes, **own, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def family(model: str) -> str:
    """Up to the first number, which is a version: qwen2, mistral."""
    return re.split(r"[._]", model)[0]


def letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def test_every_one_is_tried():
    assert set(SETS) == set(ROWS)
    assert all(set(content) == {"path"} for content in MODELS.values())  # so that one of a family will do
    assert {family(model) for model in LIKE} == {family(model) for model in MODELS}


@pytest.mark.parametrize("model", MODELS)
def test_each_composes_and_is_found_where_its_name_says(model):
    data = list(SETS)[list(MODELS).index(model) % len(SETS)]
    order = order_of("+experiment=orpo", f"data={data}", f"model={model}")
    for name, path in ((data, order.config.data.path), (model, order.config.model.path)):
        assert re.fullmatch(r"[\w-]+/[\w.-]+", path), path
        assert letters(name) in letters(path)


@pytest.mark.parametrize("data", SETS)
def test_a_set_of_its_form_is_read_and_tokenized(data, tmp_path):
    splits, (prompt, *answers) = ROWS[data][1:]
    config = order_of("+experiment=orpo", "model=tiny", f"data={data}", f"data.path={small_set(data, tmp_path)}").config
    read = DATA.build(config.data).load(config.seed)
    assert not read.skipped
    assert (read.size, len(read.held_out)) == ((10, 4) if len(splits) > 1 else (9, 1))
    pairs = {pair.row: pair for pair in [*read.held_out, *read.train]}
    assert pairs[1] == PreferencePair(1, prompt, *answers)
    if data == "orca_dpo_pairs":
        assert pairs[0].prompt == asked(0)[0]  # nothing before it where the system message is empty

    tokenizer = bytes_tokenizer()
    tokens = prepare(read, tokenizer, config.data)
    assert (tokens.size, len(tokens.held_out), tokens.truncated) == (read.size, len(read.held_out), 0)
    pair = {pair.row: pair for pair in [*tokens.held_out, *tokens.train(range(read.size))]}[1]
    ends = {"assistant": "<eos>"}
    said = "".join(f"{of['role'].capitalize()}: {of['content']}{ends.get(of['role'], '')}\n\n" for of in prompt)
    assert tokenizer.decode(pair.prompt_ids) == f"{said}Assistant: "
    assert [tokenizer.decode(ids) for ids in (pair.chosen_ids, pair.rejected_ids)] == [f"{of}<eos>" for of in answers]


@pytest.mark.parametrize(("data", "model"), zip(cycle(ROWS), LIKE, strict=False))
def test_it_trains_with_a_small_model_of_the_same_architecture(data, model, run, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "draw_plots", lambda folder: None)
    folder = run(
        "+experiment=orpo",
        f"data={data}",
        f"data.path={small_set(data, tmp_path / 'set')}",
        f"model={model}",
        f"model.path={small_model(model, tmp_path / 'base')}",
        "train.global_batch_size=4",
        "train.max_steps=2",
        "train.eval_every=2",
        "train.samples=1",
        "train.sample_tokens=2",
        "tracker=[]",
    )
    config = OmegaConf.load(folder / "config.yaml")
    assert (config.choices.data, config.choices.model, config.optimizer.lr) == (data, model, 8e-6)
    pairs = "10 training pairs, 4 held out" if len(ROWS[data][1]) > 1 else "9 training pairs, 1 held out"
    assert f"data: {pairs}, 0 truncated" in (folder / "run.log").read_text()
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert OmegaConf.load(folder / "model" / "config.json").model_type == LIKE[model][0]
