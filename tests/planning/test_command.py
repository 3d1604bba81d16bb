"""plan_only=true on the command line: what it prints, that nothing is written, and its exit codes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support import order_of, start_run, wait_for_end

from orpo_exp.cli import main
from orpo_exp.launchers import Elsewhere
from orpo_exp.planning import planner, timing
from orpo_exp.planning.command import judged, side_by_side
from orpo_exp.planning.figures import Figures, Memory
from orpo_exp.plugins import Place

OWN = [
    "+experiment=orpo", "model=tiny", "data=json", "data.path=pairs.jsonl", "data.eval_size=4", "train.epochs=2",
    "train.global_batch_size=8", "train.eval_every=2", "train.save_every=3", "train.samples=0",
]  # fmt: skip
PLAN = [*OWN, "plan_only=true"]


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)


def left(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "cache" not in path.parts}


def test_a_plan_of_a_run_says_what_it_needs_and_writes_nothing(pairs_file, tmp_path, capsys):
    before = left(tmp_path)
    assert main(PLAN) == 0
    told = {line[:15].strip(): line[15:].strip() for line in capsys.readouterr().out.splitlines()}
    assert told["model"] == "LlamaForCausalLM, 147,968 parameters"
    assert told["data"] == "20 training pairs, 4 held out; 0 cut, 0 skipped"
    assert told["steps"] == "6 of 8 pairs, 2 epochs"
    assert told["besides"].startswith("4 evaluations, 2 checkpoints of 1.8 MB")
    assert "It fits." in told
    assert left(tmp_path) == before


def test_what_does_not_fit_is_said_by_the_exit_code(pairs_file, capsys, monkeypatch):
    monkeypatch.setattr(planner, "free_bytes", lambda device: 10_000)
    assert main(PLAN) == 1
    page = capsys.readouterr().out
    assert "It does not fit." in page
    assert "not told: it does not fit" in page


def test_what_cannot_be_run_is_refused_as_ever(tmp_path, pairs_file, capsys):
    before = left(tmp_path)
    assert main([*PLAN, "data.path=nowhere.jsonl"]) == 2
    assert "nothing was started" in capsys.readouterr().err
    assert main([*OWN, "plan_only=maybe"]) == 2
    capsys.readouterr()
    assert main([*PLAN, "layout=packed", "model.arch=gemma2"]) == 2  # which is found out after composing
    assert "key      layout" in capsys.readouterr().err
    assert left(tmp_path) == before


@pytest.mark.slow
def test_points_of_a_sweep_are_planned_a_line_each(pairs_file, tmp_path, capsys):
    before = left(tmp_path)
    assert main(["--multirun", *PLAN, "train.max_steps=1,3", "hydra.launcher.parallel=2"]) == 0
    page = capsys.readouterr().out
    assert "train.max_steps=1  " in page
    assert "2 points to run" in page
    assert "2 at a time" in page
    assert left(tmp_path) == before


def test_a_plan_is_no_other_run(pairs_file):
    assert order_of(*PLAN).config.config_hash == order_of(*OWN).config.config_hash


def test_points_side_by_side_share_the_memory():
    parts = {"libraries": 60, "gradients": 5, "activations": 5}
    memory = Memory("cpu", parts, frozenset(), True, 1, 100)
    figures = Figures("", 1, 1, 0, 0, 1, 1, 0, None, 1, 0, 0, "", 1, (1, 1), 1, 1, 0, None, memory)
    assert side_by_side(figures, 1, 1).memory.fits
    assert side_by_side(figures, 2, 1).memory.fits is False
    on_gpu = replace(figures, memory=replace(memory, device="cuda"))
    assert side_by_side(on_gpu, 2, 1).memory.fits
    assert side_by_side(on_gpu, 1, 2).memory.fits
    assert side_by_side(on_gpu, 2, 2).memory.fits is False
    assert "hydra.launcher.per_gpu" in side_by_side(on_gpu, 2, 2).notes[-1]
    assert judged([figures], fine=True) == 0
    assert judged([figures], fine=False) == judged([side_by_side(figures, 2, 1)], fine=True) == 1


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["plugin=ddp"], ["plugin=zero1"], ["plugin=zero2"], ["adapter=lora"]])
def test_what_is_told_of_ranks_elsewhere_is_what_a_plugin_tells_that_is_there(overrides, pairs_file):
    merge = ["adapter.merge=true"] if "adapter=lora" in overrides else []
    order = order_of(*PLAN, *overrides, *merge)
    there = planner.here(order, Place()).memory.parts
    told = planner.elsewhere(order, Elsewhere(1, "cpu", 1, None)).memory.parts
    for part in ("weights", "copies", "gradients", "state", "activations", "logits"):
        assert told[part] == there[part], part


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [300, 30_000])
def test_a_run_takes_the_memory_that_its_plan_says(vocabulary, pairs_file, tmp_path):
    """Within a quarter. The plan's parts alone are meant, not what was seen in its steps."""
    sizes = [f"model.vocab_size={vocabulary}", "model.hidden_size=256", "model.num_hidden_layers=4", "tracker=[]"]
    folder = tmp_path / "run"
    # each in a process of its own, for what is loaded is a part of it
    told = wait_for_end(start_run(tmp_path, *OWN, *sizes, "plan_only=true"))
    wait_for_end(start_run(tmp_path, *OWN, *sizes, f"hydra.run.dir={folder}"))
    number, unit = re.search(r"together +([\d.]+) (MB|GB)", told).groups()
    measured = json.loads((folder / "result.json").read_text())["peak_memory_bytes"]
    assert float(number) * {"MB": 1e6, "GB": 1e9}[unit] == pytest.approx(measured, rel=0.25)
    assert "It fits." in told


@pytest.mark.parallel
def test_two_ranks_plan_together(pairs_file, tmp_path):
    told = wait_for_end(start_run(tmp_path, *PLAN, "processes=2", "plugin=zero2"))
    assert "on cpu, 2 in all" in told
    assert "float32 copies           295.9 kB" in told
    assert "there is for 2 ranks" in told
