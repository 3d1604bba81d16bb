"""From Python what the command does, each compared with it or with a number by hand."""

import math

import pytest

from orpo_exp import compose, logps, loss, run, sweep
from orpo_exp.tracking.jsonl import read_metrics

ROWS = [{"prompt": f"{i} + 1 =", "chosen": f" {i + 1}", "rejected": f" {i}"} for i in range(24)]
SHORT = (
    "+experiment=orpo", "model=tiny", "train.max_steps=3", "train.global_batch_size=4", "train.samples=0",
    "optimizer.lr=1e-3", "tracker=[]",
)  # fmt: skip


def test_a_run_is_that_of_the_command_and_comes_back_with_its_numbers(tmp_path, pairs_file, capsys):
    from orpo_exp.cli import main

    told = []
    ended = run(*SHORT, f"data.path={pairs_file}", callback=lambda step, split, metrics: told.append((step, split)))
    assert ended.status == "completed"
    assert [row["step"] for row in ended.curve()] == [1, 2, 3]
    assert ended.metrics["loss"] == ended.curve("eval")[-1]["loss"]
    assert told == [(0, "eval"), (1, "train"), (2, "train"), (3, "train"), (3, "eval")]
    assert main([*SHORT, f"data.path={pairs_file}", f"hydra.run.dir={tmp_path / 'command'}"]) == 0
    losses = [row["loss"] for row in read_metrics(tmp_path / "command" / "metrics.jsonl", "train")]
    assert [row["loss"] for row in ended.curve()] == losses


def test_what_is_composed_can_be_looked_at_is_run_once_and_loads():
    order = compose(*SHORT, "loss.lam=0.5", rows=ROWS)
    assert order.config.loss.lam == 0.5
    first = run(order)
    model, tokenizer = first.load()
    ids = tokenizer("2 + 2 =", return_tensors="pt").input_ids
    assert model(input_ids=ids).logits.shape[-1] == model.config.vocab_size
    written = (first.folder / "result.json").stat().st_mtime_ns
    assert run(order).metrics == first.metrics
    assert (first.folder / "result.json").stat().st_mtime_ns == written


def test_ones_own_model_and_rows_train_and_begin_where_they_were():
    model, tokenizer = run(*SHORT, rows=ROWS).load()
    given = [of for of in SHORT if of != "model=tiny"]
    again = run(*given, rows=ROWS[:12], eval_rows=ROWS[12:], model=model, tokenizer=tokenizer)
    other = run(*given, rows=ROWS[:12], eval_rows=ROWS[12:], model=model, tokenizer=tokenizer)
    assert again.curve()[0]["loss"] == other.curve()[0]["loss"]
    assert again.result["steps"] == 3
    with pytest.raises(ValueError, match="give both"):
        compose(*given, rows=ROWS, model=model)


def test_errors_are_exceptions_and_start_nothing(tmp_path):
    for wrong in ("loss.lamda=1", "loss=nope", "train.max_steps=0", "optimizer.lr=abc"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0].replace(".", r"\.")):
            run(*SHORT, wrong, rows=ROWS)
    with pytest.raises(ValueError, match="This one is empty"):
        run(*SHORT, rows=[])
    with pytest.raises(RuntimeError, match="not finite"):
        run(*SHORT, "optimizer.lr=1e30", "train.max_grad_norm=null", rows=ROWS)
    assert not (tmp_path / "sweeps").exists()


def test_a_callback_that_raises_ends_no_training(capfd):
    def failing(step, split, metrics):
        raise KeyError("mine")

    assert run(*SHORT, rows=ROWS, callback=failing).status == "completed"
    assert "failed and is switched off for this run: KeyError: 'mine'" in capfd.readouterr().out
    with pytest.raises(ValueError, match="1 with a callback"):
        run(*SHORT, "processes=2", rows=ROWS, callback=failing)


def test_a_loss_by_itself_on_lists_of_numbers():
    policy = logps(chosen=[[-0.5, -1.0], [-0.2]], rejected=[[-2.0], [-1.0, -3.0]])
    output = loss("orpo", lam=0.5, nll="answer")(policy)

    def log_odds(mean):
        return mean - math.log(1 - math.exp(mean))

    ratios = [log_odds(-0.75) - log_odds(-2.0), log_odds(-0.2) - log_odds(-2.0)]
    by_hand = (0.5 + 1.0 + 0.2) / 3 + 0.5 * sum(math.log(1 + math.exp(-ratio)) for ratio in ratios) / 2
    assert output.loss.item() == pytest.approx(by_hand, rel=1e-12)
    output.loss.backward()
    assert policy.chosen.values.grad is not None
    reference = logps(chosen=[[-1.0, -1.0], [-0.5]], rejected=[[-2.0], [-1.0, -2.0]])
    dpo = loss("dpo", beta=0.1)(policy, reference)
    margins = [0.1 * (0.5 - 0.0), 0.1 * (0.3 + 1.0)]
    assert dpo.loss.item() == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins) / 2, rel=1e-12)
    with pytest.raises(ValueError, match=r"loss\.beta"):
        loss("orpo", beta=1)
    with pytest.raises(ValueError, match="of each pair one of both"):
        logps(chosen=[[-1.0]], rejected=[])


@pytest.mark.slow
def test_a_sweep_comes_back_as_a_table():
    swept = sweep(*SHORT, "loss.lam=0,0.5", "seed=0,1", rows=ROWS)
    assert set(swept.runs) == {f"loss.lam={lam},seed={seed}" for lam in ("0", "0.5") for seed in (0, 1)}
    assert {row["status"] for row in swept.table} == {"completed"}
    assert all("rewards/accuracy" in row and row["loss.lam"] in ("0", "0.5") for row in swept.table)
    assert "loss.lam" in swept.answer
