"""Every block of the README is run as it stands: shell, Python, and the rows and settings it shows.

A section's commands share a folder, as they do for a reader; keys are added behind each that bound its size. Most run
within this process, as `python -m` would run them, for each start costs seconds.
"""

import csv
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from adapters.small import llama, save_llama
from data.test_files import hub_set
from support import kill_tree, order_of, start_run, uneven_rows
from test_known import small_set

from orpo_exp.cli import planned_sweep
from orpo_exp.composition import compose
from orpo_exp.data.inspect import main as inspect
from orpo_exp.runs.states import read_result
from orpo_exp.sweeps.points import combinations

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SLURM = "wants a cluster with GPUs; composed and checked here, run in tests/slurm"
STAGES = "takes minutes; planned here, run in small in tests/sweeps and tests/slurm"
TRL = "makes an environment with TRL in it, from the network"
INSTALLS = "installs, from the network"
# what is not run, and why
NOT_RUN = {
    "pip install uv": INSTALLS,
    "uv sync": INSTALLS,
    "uv pip install --no-config 'transformers==5.*'": INSTALLS,
    "uv run pytest": "runs the tests",
    "uv run benchmarks/trl_orpo_parity.py": TRL,
    "uv run benchmarks/trl_dpo_losses.py --json": TRL,
    "uv run benchmarks/trl_cpo_kto_losses.py": TRL,
    "uv run benchmarks/trl_lora.py": TRL,
    "uv run benchmarks/throughput.py --steps 13 --rounds 2 --micro-batches 1 --loss orpo dpo --plot "
    "benchmarks/throughput.svg": TRL,
    "python -m orpo_exp --multirun +experiment=orpo data.path=pairs.jsonl model.path=Qwen/Qwen2.5-0.5B "
    "plugin.precision=bf16 loss.lam=0,0.1,0.5,1.0 seed=0,1,2 hydra/launcher=slurm hydra.launcher.partition=gpu "
    "hydra.launcher.gpus_per_node=1 hydra.launcher.cpus_per_task=8 hydra.launcher.mem_gb=60 "
    "hydra.launcher.timeout_min=120 hydra.launcher.array_parallelism=8": SLURM,
    "python -m orpo_exp +experiment=orpo data.path=pairs.jsonl model.path=Qwen/Qwen2.5-0.5B plugin.precision=bf16 "
    "train.global_batch_size=256 train.micro_batch_size=8 train.save_every=100 hydra.run.dir=outputs/big "
    "hydra/launcher=slurm hydra.launcher.partition=gpu hydra.launcher.nodes=4 hydra.launcher.gpus_per_node=8 "
    "hydra.launcher.cpus_per_task=8 hydra.launcher.timeout_min=240": SLURM,
}
NOT_RUN |= {
    f"python -m orpo_exp --multirun +experiment={rest}": STAGES
    for rest in (
        "lambda_sweep sweep.racing=true",
        "lambda_sweep sweep.racing=true 'sweep.rungs=[0.5]' sweep.metric=nll_loss sweep.name=by_nll",
        "quickstart data=toy_order data.split_seed=0 'loss.lam=tag(log,interval(0.01,2))' seed=0,1 sweep.trials=12",
        "quickstart 'optimizer.lr=tag(log,interval(1e-4,1e-2))' loss=orpo,simpo sweep.trials=16 "
        "sweep.metric=logps/accuracy",
    )
}
SWEEP = re.findall(r"sweeps/lambda_sweep/([0-9a-f]{8})\b", README)[0]
PLANS = "plan_only=true"  # trains nothing, and so needs no bounds
SMALL = {"train.max_steps": 2, "train.global_batch_size": 4, "train.samples": 1, "train.sample_tokens": 4}
OF_TOYS = {"data.eval_pairs": 8}


@dataclass(frozen=True)
class Command:
    """A command of the README: its words, what is said behind it, the lines that it is shown to print."""

    words: tuple[str, ...]
    comment: str
    shown: str

    @property
    def bounded(self) -> list[str]:
        """The words, and behind them keys for what they leave open, so that it takes a second or two."""
        if PLANS in self.words:
            return [*self.words]
        given = {word.partition("=")[0] for word in self.words}
        wanted = SMALL | ({} if given & {"data", "data.path"} else OF_TOYS)
        if "train.save_every" in given:
            del wanted["train.max_steps"]
        if "+experiment=lambda_sweep" in self.words:
            wanted["sweep.name"] = SWEEP
        return [*self.words, *(f"{key}={value}" for key, value in wanted.items() if key not in given)]

    def __str__(self) -> str:
        return shlex.join(self.words)


def without_numbers(text: str) -> str:
    """Sizes, times and counts as #."""
    return re.sub(r" +(?=[ \n])", "", re.sub(r"\d[\d.,]*( (kB|MB|GB|bytes|s|min)\b)?", "#", text))


def blocks(text: str, *languages: str) -> list[str]:
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.S | re.M)


def commands(text: str) -> list[Command]:
    """The commands in blocks of shell, and in blocks of text those behind a `$`."""
    found = []
    for block in blocks(text, "bash"):
        for line in block.splitlines():
            written, _, comment = line.partition("  #")
            found += [Command(tuple(shlex.split(each)), comment.strip(), "") for each in written.split("&&")]
    for block in blocks(text, "text"):
        for example in re.split(r"^\$ ", block, flags=re.M)[1:]:
            line, _, shown = example.replace("\\\n", " ").partition("\n")
            found.append(Command(tuple(shlex.split(line)), "", shown))
    return found


SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^##? (?!Our cluster)", README, flags=re.M)[1:]}
WRITTEN = [command for section in SECTIONS.values() for command in commands(section)]
RUN = {
    title: found
    for title, section in SECTIONS.items()
    if (found := [command for command in commands(section) if str(command) not in NOT_RUN])
}
PYTHON = blocks(README, "python")


def test_what_is_not_run_is_there_and_all_else_can_be():
    assert {*map(str, WRITTEN)} >= set(NOT_RUN)
    assert len(WRITTEN) - len(NOT_RUN) > 35
    for command in WRITTEN:
        runs = module(command) or command.words[0] == "torchrun"
        assert runs or str(command) in NOT_RUN, f"{command} is neither run nor said not to be"


def test_its_pictures_are_there_and_small():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert len(pictures) == 3
    assert all((ROOT / picture).stat().st_size < 150_000 for picture in pictures)


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """The working folder of someone who has what the README takes as given: data, models, an adapter."""
    from peft import LoraConfig, get_peft_model

    for path in ("my-model", "Qwen/Qwen2.5-0.5B"):
        save_llama(tmp_path / path)
    adapted = get_peft_model(llama(), LoraConfig(r=2, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "outputs/big/model")
    rows = uneven_rows(24)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "asked.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "system", "better", "worse"])
        table.writerows([row["prompt"], "Be brief.", row["chosen"], row["rejected"]] for row in rows)
    hub_set(tmp_path / "owner/name", train=rows)
    small_set("ultrafeedback_binarized", tmp_path / "HuggingFaceH4/ultrafeedback_binarized")
    return tmp_path


def module(command: Command) -> str | None:
    """The module of this package that a command starts; `uv run` in front starts it in the environment at hand."""
    words = [word for word in command.words if word not in ("uv", "run", "--no-sync")]
    return words[2] if words[:2] == ["python", "-m"] and words[2].partition(".")[0] == "orpo_exp" else None


def run_here(command: Command) -> int:
    """Run a module as `python -m` does, but in this process; its exit code."""
    name = module(command)
    assert name
    words = command.bounded if name == "orpo_exp" else [*command.words]
    sys.argv[1:] = words[words.index(name) + 1 :]
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    return int(ended.value.code or 0)


def stop(command: Command, folder: Path) -> int:
    """Start a command and stop it by Ctrl-C once it has trained for some steps; its exit code."""
    process = start_run(folder, *command.bounded[3:])
    metrics = folder / "outputs/mine/metrics.jsonl"
    try:
        for _ in range(1200):
            if process.poll() is not None or (metrics.exists() and '"step": 20,' in metrics.read_text()):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        return process.returncode
    finally:
        if process.poll() is None:
            kill_tree(process)


def torchrun(command: Command) -> int:
    """Start torchrun, that of the environment at hand."""
    here = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command.bounded, env=here, timeout=180, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize("title", RUN)
def test_a_sections_commands_do_what_it_says(title, reader, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["python"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for command in RUN[title]:
        if command.words[0] == "torchrun":
            assert torchrun(command) == 0
        elif command.comment.startswith("Ctrl-C it"):
            assert stop(command, reader) == 128 + signal.SIGINT
        else:
            refused = "this cannot be run" in command.shown
            assert run_here(command) == (2 if refused else 0), command
        output, shown = "".join(capfd.readouterr()), command.shown.replace("/home/me", str(reader))
        if PLANS in command.words:
            output, shown = without_numbers(output), without_numbers(shown)
        assert shown in output
    for path in reader.rglob("result.json"):
        assert read_result(path.parent)["status"] == "completed"
    for folder in reader.glob("exported*"):
        assert (folder / "model.safetensors").exists()


@pytest.mark.slow
def test_the_sweeps_folder_is_the_one_that_is_named(reader):
    assert planned_sweep(["+experiment=lambda_sweep"], None)[1] == reader / "sweeps/lambda_sweep" / SWEEP


@pytest.mark.parametrize("command", [command for command in WRITTEN if NOT_RUN.get(str(command)) == SLURM])
def test_what_wants_a_cluster_is_composed_and_checked(command):
    overrides = [word for word in command.words[3:] if word != "--multirun"]
    for point in combinations(overrides):
        assert order_of(*point.overrides).experiment == "orpo"


@pytest.mark.parametrize("command", [command for command in WRITTEN if NOT_RUN.get(str(command)) == STAGES])
def test_what_takes_minutes_is_planned(command):
    planned, _, _ = planned_sweep([word for word in command.words[3:] if word != "--multirun"], None)
    assert sum(map(len, planned.stages)) in (16, 24, 36, 54)


@pytest.mark.parametrize("row", blocks(README, "json")[0].splitlines())
def test_rows_come_in_the_forms_that_are_shown(row, tmp_path):
    save_llama(tmp_path / "my-model")
    (tmp_path / "pairs.jsonl").write_text(row + "\n")
    evaluated = "data.eval_path=pairs.jsonl"  # of one row none can be held out
    assert inspect(["+experiment=orpo", "data.path=pairs.jsonl", "model.path=./my-model", evaluated]) == 0


def test_a_launcher_of_ones_own_is_composed(tmp_path):
    (settings,) = blocks(README, "yaml")
    path = tmp_path / "mine/hydra/launcher/ours.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(settings)
    launcher = compose(["+experiment=quickstart", "hydra/launcher=ours"], "mine").hydra.launcher
    assert (launcher.partition, launcher.account, launcher.nodes) == ("gpu", "my-project", 1)


def test_there_are_two_and_the_other_one_has_a_test_of_its_own():
    assert ["ORPOTrainer" in block for block in PYTHON] == [False, True]


@pytest.mark.slow
def test_what_it_says_of_python_can_be_typed(tmp_path):
    script, shortened = re.subn(r"train\.max_steps=\d+", "train.max_steps=3", PYTHON[0])
    assert shortened == 3
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "completed" in ended.stdout
    assert "'odds_ratio_loss'" in ended.stdout
    assert "'loss.lam': '0.5'" in ended.stdout
