"""The command line as a user meets it: what is refused, how it is told, and that nothing is left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import uneven_rows

from orpo_exp.cli import main
from orpo_exp.runs.order import RunOrder
from orpo_exp.sweeps.points import Plan

TOY = ("model=tiny", "data=toy", "train.max_steps=1")
OWN = ("+experiment=orpo", "model=tiny")

# command -> what the page must say of key, given and allowed
REFUSED = [
    ([*TOY, "loss.bta=1"], "loss.bta", "1", "lam, nll"),
    ([*TOY, "+loss.bta=1"], "loss.bta", "1", "lam, nll"),
    ([*TOY, "++loss.bta=1"], "loss.bta", "1", "lam, nll"),
    ([*TOY, "loss.lam=abc"], "loss.lam", "abc", "a number"),
    ([*TOY, "loss.lam=-1"], "loss.lam", "-1.0", "a finite number, at least 0"),
    ([*TOY, "loss.lam=nan"], "loss.lam", "nan", "a finite number, at least 0"),
    ([*TOY, "loss.lam=inf"], "loss.lam", "inf", "a finite number, at least 0"),
    ([*TOY, "loss.nll=both"], "loss.nll", "both", "answer, prompt_and_answer"),
    ([*TOY, "loss.name=dpo"], "loss.name", "dpo", "lam, nll"),
    ([*TOY, "loss=nope"], "loss", "nope", "orpo"),
    ([*TOY, "~loss"], "loss", "nothing", "a value"),
    ([*TOY, "optimizr=sgd"], "optimizr", "sgd", "optimizer"),
    ([*TOY, "choices.loss=dpo"], "choices.loss", "dpo", ""),
    ([*TOY, "+choices.loss=dpo"], "choices", "dpo", "nothing: it is filled in"),
    ([*TOY, "train.global_batch_size=0"], "train.global_batch_size", "0", "a whole number, at least 1"),
    ([*TOY, "loss=kto", "train.global_batch_size=1"], "train.global_batch_size", "1", "2 or more"),
    ([*TOY, "train.max_steps=1.5"], "train.max_steps", "1.5", "a whole number or null"),
    ([*TOY, "train=3"], "train", "3", "global_batch_size"),
    ([*TOY, "processes=99"], "processes", "99", "1 to "),
    ([*TOY, "scheduler.warmup=2.5"], "scheduler.warmup", "2.5", "a whole number of steps"),
    ([*TOY, "model.num_attention_heads=3"], "model.num_attention_heads", "3", "a divisor of 64"),
    ([*TOY, "model.arch=lama"], "model.arch", "lama", "llama"),
    ([*TOY, "model.arch=bert2"], "model.arch", "bert2", "mistral"),
    ([*TOY, "data.min_prompt_length=127"], "data.min_prompt_length", "127", "at most max_length - 2"),
    (["model=tiny", "data=toy"], "train.max_steps", "None", "train.epochs"),
    (["model=tiny", "data=toy", "train.epochs=1"], "train.max_steps", "None", "train.epochs"),
    ([*TOY, "model=hf"], "model.path", "nothing", "a value"),
    ([*TOY, "model=hf", "model.path=./nowhere"], "model.path", "./nowhere", "a folder that exists"),
    ([*TOY, "loss=[x"], "loss=[x", "loss=[x", "key=value"),
    (["+experiment=nope"], "experiment", "nope", "quickstart"),
    (
        ["--config-dir", "mine", "+experiment=typo"],
        "train.max_stepz",
        "train.max_stepz in experiment/typo.yaml",
        "max_steps",
    ),
    ([*OWN, "data.path=missing.json"], "data.path", "missing.json", "a file or folder that exists"),
    ([*OWN, "data.path=empty.jsonl"], "data.path", "empty.jsonl", "a file with at least two rows"),
    ([*OWN, "data.path=not.json"], "data.path", "not.json", "at least one usable row"),
    ([*OWN, "data.path=list.json"], "data.path", "list.json", "at least one usable row"),
    ([*OWN, "data.path=unusable.jsonl"], "data.path", "unusable.jsonl", "at least one usable row"),
    ([*OWN, "data.path=columns.jsonl"], "data.path", "columns.jsonl", "trl (chosen, rejected, prompt)"),
    ([*OWN, "data.path=one.jsonl"], "data.eval_size", "0.1", "leaves pairs to train on"),
    ([*OWN, "data.path=photo.png"], "data.path", "photo.png", ".jsonl"),
]


@pytest.fixture
def files(tmp_path: Path) -> set[Path]:
    """Bad inputs of every kind; returns all that lies in the folder."""
    rows = uneven_rows(1)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "typo.yaml").write_text("# @package _global_\ntrain:\n  max_stepz: 3\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "not.json").write_text("hello {")
    (tmp_path / "list.json").write_text("[1, 2, 3]")
    (tmp_path / "one.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "unusable.jsonl").write_text(json.dumps(rows[0] | {"chosen": ""}) + "\n")
    (tmp_path / "columns.jsonl").write_text(json.dumps({"prompt": "p", "best": "a", "worst": "b"}) + "\n")
    (tmp_path / "photo.png").write_bytes(b"x")
    return set(tmp_path.rglob("*"))


@pytest.mark.parametrize(("command", "key", "given", "allowed"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_refused_at_once(command, key, given, allowed, files, tmp_path, capfd):
    assert main(command) == 2
    page = capfd.readouterr().err
    told = dict(line.strip().split(maxsplit=1) for line in page.splitlines() if line.startswith("  "))
    assert told["key"] == key
    assert given in told["given"]
    assert allowed in told["allowed"]
    assert told["do"]
    assert "Traceback" not in page
    left_behind = {path for path in tmp_path.rglob("*") if "cache" not in path.parts} - files
    assert not left_behind


def test_one_bad_point_refuses_a_sweep_before_the_first_runs(tmp_path, capfd):
    assert main(["--multirun", *TOY, "loss.lam=0.1,-1", "seed=0"]) == 2
    assert "-1.0 in the point loss.lam=-1\n" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_point_whose_data_cannot_be_read_refuses_a_sweep(files, tmp_path, capfd):
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven_rows(24)))
    assert main(["--multirun", *OWN, "data.path=good.jsonl,empty.jsonl", "seed=0,1"]) == 2
    assert "empty.jsonl" in capfd.readouterr().err
    assert not (tmp_path / "sweeps").exists()


@pytest.fixture
def planned(monkeypatch) -> list[Plan]:
    """The plans of the sweeps that are given, none of which is carried out."""
    plans: list[Plan] = []
    monkeypatch.setattr("orpo_exp.cli.carry_out", lambda plan, *others: plans.append(plan) or 0)
    return plans


def test_the_lambda_sweep_is_6_values_with_3_seeds_and_looks_at_each_data_set_once(planned, monkeypatch, tmp_path):
    looked: list[RunOrder] = []
    monkeypatch.setattr("orpo_exp.cli.preflight", lambda order, fetch: looked.append(order))
    assert main(["--multirun", "+experiment=lambda_sweep"]) == 0
    (plan,) = planned
    settings = {(order.config.loss.lam, order.config.seed) for order in plan.to_run}
    assert settings == {(lam, seed) for lam in (0, 0.05, 0.1, 0.25, 0.5, 1.0) for seed in (0, 1, 2)}
    assert [order.config.seed for order in looked] == [0, 1, 2]
    (folder,) = {order.folder.parent for order in plan.to_run}
    assert folder.parent == tmp_path / "sweeps" / "lambda_sweep"


def test_a_command_has_the_say_over_what_its_preset_sweeps(planned, tmp_path):
    assert main(["+experiment=lambda_sweep", "--multirun", "loss.lam=0.3,0.4", "seed=5", "sweep.name=mine"]) == 0
    assert {(o.config.loss.lam, o.config.seed) for o in planned[0].to_run} == {(0.3, 5), (0.4, 5)}
    assert planned[0].to_run[0].folder.parent == tmp_path / "sweeps" / "lambda_sweep" / "mine"


def test_a_setting_of_a_swept_option_can_be_fixed(planned):
    """The default loss has no beta: nothing may be composed without the sweep's own choices."""
    assert main(["--multirun", *TOY, "loss=dpo,ipo", "loss.beta=0.3"]) == 0
    assert [order.config.choices["loss"] for order in planned[0].to_run] == ["dpo", "ipo"]


def test_presets_that_sweep_other_things_are_not_swept_over(planned, capfd):
    assert main(["--multirun", "+experiment=lambda_sweep,quickstart"]) == 2
    assert "hydra.sweeper.params" in capfd.readouterr().err


def test_a_sweep_is_started_once_not_by_torchrun(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--multirun", *TOY, "seed=0,1"]) == 2
    assert "without torchrun" in capfd.readouterr().err


def test_a_job_is_not_submitted_by_each_of_torchruns_ranks(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*TOY, "hydra/launcher=slurm"]) == 2
    assert "without torchrun" in capfd.readouterr().err


def test_a_folder_with_a_run_in_it_is_not_written_over(tmp_path, capfd):
    (tmp_path / "result.json").write_text("{}")
    assert main([*TOY, f"hydra.run.dir={tmp_path}"]) == 2
    assert "hydra.run.dir" in capfd.readouterr().err


def test_help_names_every_option(capfd):
    assert main(["--help"]) == 0
    page = capfd.readouterr().out
    conf = Path(__file__).parents[1] / "conf"
    for option in [*conf.glob("*/*.yaml"), *conf.glob("hydra/launcher/*.yaml")]:
        assert f"    {option.stem} " in page, option
    assert page.count("python -m orpo_exp") >= 5


def test_errors_and_help_import_nothing_heavy(tmp_path):
    """In a process of its own, for this one has imported everything already."""
    commands = [
        command for command, key, *_ in REFUSED if not key.startswith("data.") and "--config-dir" not in command
    ]
    program = (
        "import sys, json\nfrom orpo_exp.cli import main\n"
        f"for command in json.loads({json.dumps(json.dumps([*commands, ['--help']]))}):\n    main(command)\n"
        "heavy = {'colossalai', 'transformers', 'datasets', 'wandb', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True)


def test_cfg_job_shows_the_configuration_and_runs_nothing(tmp_path, capfd):
    assert main(["+experiment=quickstart", "--cfg", "job", "loss.lam=0.5"]) == 0
    assert "lam: 0.5" in capfd.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_changes_no_number_stays_out_of_the_hash(monkeypatch):
    orders: list[RunOrder] = []
    monkeypatch.setattr("orpo_exp.cli.start", lambda order, *_: orders.append(order) or 0)

    def config_hash(*overrides: str) -> str:
        assert main(["model=tiny", "data=toy", "train.max_steps=1", *overrides]) == 0
        return orders[-1].config.config_hash

    base = config_hash()
    assert config_hash("processes=2", "train.micro_batch_size=3", "tracker=[console]", "train.samples=0") == base
    assert config_hash("seed=1") != base
    assert config_hash("loss.lam=0.2") != base
    assert config_hash("layout=padded", "hydra.run.dir=elsewhere") == base
