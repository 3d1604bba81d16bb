"""How much of the host's memory ranks take to start, up to the first step: peaks, as Linux counts them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from support import order_of, uneven_rows

from orpo_exp import experiment
from orpo_exp.models.tokenizers import bytes_tokenizer
from orpo_exp.plugins import Place
from orpo_exp.plugins.ranks import join_process_group, most_held
from orpo_exp.runs.order import RunOrder

BASE = (
    "model=hf", "data=json", "data.eval_size=2", "train.global_batch_size=8",
    "train.micro_batch_size=1", "train.epochs=1", "train.samples=0", "tracker=[]",
)  # fmt: skip


def make_model(folder: Path, hidden: int, layers: int, vocabulary: int = 8192) -> int:
    """Write a random Llama, with weights of float32 and a tokenizer, as Hugging Face's folders are; its bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(hidden // 64, 4)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="100MB")
    bytes_tokenizer().save_pretrained(folder)
    return sum(parameter.nbytes for parameter in model.parameters())


def orders(folder: Path, tiny: Path, model: Path, overrides: Sequence[str]) -> list[RunOrder]:
    """For `start`: two runs of a tiny model, the first of which loads what is loaded once, and one of a model."""
    data = folder / "few.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(12)))
    models = {"first": tiny, "small": tiny, "large": model}
    return [
        replace(
            order_of(*BASE, f"data.path={data}", *overrides, f"model.path={path}"),
            folder=folder / f"{overrides[0]} {name}",
        )
        for name, path in models.items()
    ]


def growths(ranks: int, folder: Path) -> list[int]:
    """By how many bytes each rank's peak at the start of the model is above its peak at the start of the tiny one."""
    peaks = [json.loads((folder / f"peaks-{rank}.json").read_text()) for rank in range(ranks)]
    return [large - small for _, small, large in peaks]


def start(place: Place, orders: Sequence[RunOrder], folder: Path) -> int:
    """This rank of some runs that end before their first step; writes its peak of each."""
    join_process_group(place, "gloo")
    peaks, report = [], experiment.report

    def end(*_: Any) -> None:
        peaks.append(most_held())
        raise SystemExit

    experiment.report = end
    for order in orders:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        try:
            experiment.run(order, place)
        except SystemExit:
            continue
        return 1
    experiment.report = report
    (folder / f"peaks-{place.rank}.json").write_text(json.dumps(peaks))
    return 0
