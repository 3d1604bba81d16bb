"""What four ranks hold of a small model, with every plugin: as much as it should be, and as much as they said before;
and what the host's memory must have for a larger one to start. `uv run pytest -m slow`.
"""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from held_bytes import run_measured
from host_memory import growths, make_model, orders
from safetensors import safe_open
from support import order_of, uneven_rows

from orpo_exp.plugins import start_ranks

pytestmark = pytest.mark.slow

RANKS = 4
LARGE = {"hidden": 768, "layers": 10, "vocabulary": 4096}
BASE = (
    "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=2", "train.global_batch_size=8",
    "train.micro_batch_size=1", "train.max_steps=1", "train.epochs=1", "train.samples=0", "tracker=[]",
)  # fmt: skip
RUNS = {
    "ddp": ["loss=orpo"],
    "zero1": ["loss=orpo", "plugin=zero1"],
    "zero2": ["loss=orpo", "plugin=zero2"],
    "zero2, 16 bits, beside a reference": [
        "loss=dpo", "reference=frozen", "plugin=zero2", "plugin.precision=bf16_weights",
    ],
    "tp2": ["loss=orpo", "plugin=hybrid", "plugin.tp_size=2"],
    "pp2, 16 bits, zero1": [
        "loss=orpo", "plugin=hybrid", "plugin.pp_size=2", "plugin.zero_stage=1", "plugin.precision=bf16_weights",
    ],
    "gemini": ["loss=dpo", "reference=frozen", "plugin=gemini"],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(12)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**17))  # or it keeps some tens of MB of what is given back
        make_model(folder / "tiny", 64, 4)
        make_model(folder / "large", **LARGE)
        starts = orders(folder, folder / "tiny", folder / "large", [*RUNS["tp2"], "plugin.pp_size=2"])
        runs = [replace(order_of(*BASE, *more), folder=folder / name) for name, more in RUNS.items()]
        assert start_ranks(RANKS, run_measured, starts, folder, runs[:-1], runs[-1:]) == 0
    return folder


@pytest.fixture(scope="module")
def shapes(runs) -> dict[str, list[int]]:
    """Of the model's parameters, by name; the head is the embedding."""
    with safe_open(runs / "ddp" / "model" / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def rank_files(folder: Path) -> list[dict]:
    return [json.loads((folder / f"held-{rank}.json").read_text()) for rank in range(RANKS)]


def bytes_that_should_be(name: str, rank: int, shapes: dict[str, list[int]]) -> dict[str, int]:
    """By hand: AdamW keeps two float32 numbers of each that is updated; the numbers of a parameter that ranks share are
    made a multiple of these."""
    numel = {of: math.prod(shape) for of, shape in shapes.items()}
    whole, quarter = sum(numel.values()), sum(math.ceil(of / 4) for of in numel.values())
    half = sum(of / 2 if len(shapes[n]) == 2 else of for n, of in numel.items())  # norms are not cut
    rows, width = shapes["model.embed_tokens.weight"]
    half += (math.ceil(rows / 2) - rows / 2) * width
    layer, either = f"layers.{rank % 2}.", {0: ("embed_tokens",), 1: ("embed_tokens", "model.norm")}[rank % 2]
    stage = sum(of for n, of in numel.items() if any(part in n for part in (layer, *either)))
    return {
        "ddp": {"weights": 4 * whole, "copies": 0, "gradients": 4 * whole, "state": 8 * whole},
        "zero1": {"weights": 4 * whole, "copies": 4 * quarter, "gradients": 4 * 4 * quarter, "state": 8 * quarter},
        "zero2": {"weights": 4 * whole, "copies": 4 * quarter, "gradients": 4 * quarter, "state": 8 * quarter},
        "zero2, 16 bits, beside a reference": {
            "weights": 2 * 2 * whole, "copies": 4 * quarter, "gradients": 2 * quarter, "state": 8 * quarter,
        },
        "tp2": {"weights": 4 * half, "copies": 0, "gradients": 4 * half, "state": 8 * half},
        "pp2, 16 bits, zero1": {
            "weights": 2 * stage, "copies": 4 * stage / 2, "gradients": 2 * stage, "state": 8 * stage / 2,
        },
        "gemini": {
            "weights": 2 * 2 * quarter, "copies": 4 * quarter, "gradients": 2 * quarter, "state": 8 * quarter,
        },
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_each_rank_holds_what_it_should(runs, shapes, name):
    for rank, found in enumerate(rank_files(runs / name)):
        expected = bytes_that_should_be(name, rank, shapes)
        if name == "gemini":  # its chunks are filled up, and one of them is half empty
            expected = {part: pytest.approx(size, rel=0.02) for part, size in expected.items()}
        assert found["held"] == expected, rank


@pytest.mark.parametrize("name", RUNS)
def test_it_was_said_before_to_the_byte(runs, name):
    for rank, found in enumerate(rank_files(runs / name)):
        assert found["said"] == found["held"], rank


@pytest.mark.parametrize("name", RUNS)
def test_the_log_says_the_smallest_and_the_largest(runs, name):
    (line,) = re.findall(r"model: LlamaForCausalLM.*", (runs / name / "run.log").read_text())
    held = [of["held"] for of in rank_files(runs / name)]
    unit = {"B": 1, "kB": 1e3, "MB": 1e6}
    for part, title in {
        "weights": "weights", "copies": "float32 copies", "gradients": "gradients", "state": "optimizer state",
    }.items():  # fmt: skip
        ((least, most),) = re.findall(rf" {title} ([\d.]+ \w+)(?: to ([\d.]+ \w+))?(?:,|$)", line)
        for said, size in ((least, min(of[part] for of in held)), (most or least, max(of[part] for of in held))):
            number, name_of_unit = said.split()
            assert float(number) * unit[name_of_unit] == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize("name", RUNS)
def test_nothing_else_is_held(runs, name):
    """At the end; no part of a model that another rank has, for one. DDP and Gemini keep the memory of gradients."""
    for rank, found in enumerate(rank_files(runs / name)):
        parts = found["held"] if name in ("ddp", "gemini") else found["held"] | {"gradients": 0}
        assert 0 <= found["all"] - sum(parts.values()) < 2000, rank  # losses, frequencies of rotary embeddings


def test_a_model_that_is_cut_starts_in_far_less_than_its_weights_on_every_rank(runs):
    """Over two stages of two ranks each: the main rank reads the weights, each of the others has a quarter of them and
    sees one parameter after another whole, of which the largest may be there twice; 8 MB a rank are left to chance.
    That is twice the weights, which would be there four times if every rank had them."""
    sizes = []
    for file in (runs / "large").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            sizes += [4 * math.prod(opened.get_slice(name).get_shape()) for name in opened.keys()]  # noqa: SIM118
    weights = sum(sizes)
    bound = weights + 3 * (weights / 4 + 2 * max(sizes)) + RANKS * 8e6
    assert bound < 0.55 * RANKS * weights
    assert sum(growths(RANKS, runs)) < bound
