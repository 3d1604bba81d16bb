"""ORPOTrainer in one process, against the loss written out in float64 and against itself, gone on with and split."""

import json
from pathlib import Path

import pytest
import torch
from colossalchat.small import RATE, batch, boosted, drawn, llama, loader, weights

from orpo_exp import ORPOTrainer
from orpo_exp.composition import check, compose
from orpo_exp.plugins import Place
from orpo_exp.plugins.ranks import join_process_group, left_afterwards

LAM = 0.7


@pytest.fixture(autouse=True)
def joined(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with left_afterwards():
        join_process_group(Place(), "gloo")
        yield


def fitted(texts, batch_size=2, accumulated=1, epochs=1, given=None, held_out=None, **settings):
    """A trainer and the weights that it leaves."""
    given = given or boosted()
    trainer = ORPOTrainer(**given, lam=LAM, max_epochs=epochs, accumulation_steps=accumulated, **settings)
    trainer.fit(loader(texts, batch_size), held_out)
    return trainer, weights(given["actor"])


def by_hand(model, texts):
    """The loss of a global batch, written out: NLL of prompt and chosen by tokens, one ratio of token odds for all."""

    def logps(prompt, answer):
        ids = torch.tensor([[*prompt, *answer]])
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return scores.gather(1, ids[0, 1:, None])[:, 0]

    chosen = [logps(prompt, answer) for prompt, answer, _ in texts]
    rejected = [logps(prompt, answer) for prompt, _, answer in texts]
    nll = -torch.cat(chosen).mean()

    def odds(scored):
        of = torch.cat([logp[len(prompt) - 1 :] for logp, (prompt, *_) in zip(scored, texts, strict=True)])
        return (of - torch.log(1.0001 - of.exp())).mean()

    return nll - LAM * torch.nn.functional.logsigmoid(odds(chosen) - odds(rejected))


def test_an_update_is_that_of_the_loss_written_out_in_float64():
    texts = drawn(8)
    trainer, ours = fitted(texts, batch_size=2, accumulated=4)
    model = llama().double()
    by_hand(model, texts).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            ours[name].double(), (parameter - RATE * parameter.grad).detach(), rtol=1e-5, atol=1e-6
        )
    assert trainer.num_train_step == 1


@pytest.mark.parametrize(("batch_size", "accumulated"), [(8, 1), (1, 8), (3, 3)])
def test_how_a_step_is_split_into_batches_changes_nothing(batch_size, accumulated):
    texts = drawn(16)
    kept = texts if batch_size != 3 else texts[:9]
    _, ours = fitted(kept, batch_size, accumulated)
    _, other = fitted(kept, 9 if batch_size == 3 else 4, 1 if batch_size == 3 else 2)
    for name, of in ours.items():
        torch.testing.assert_close(of, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("plugin", "settings"),
    [
        ("LowLevelZeroPlugin", {"stage": 1, "precision": "fp32"}),
        ("LowLevelZeroPlugin", {"stage": 2, "precision": "fp32"}),
        ("HybridParallelPlugin", {"tp_size": 1, "pp_size": 1, "precision": "fp32"}),
    ],
)
def test_every_plugin_of_the_callers_trains_alike(plugin, settings):
    texts = drawn(8)
    _, ours = fitted(texts, given=boosted(plugin, **settings))
    _, other = fitted(texts)
    for name, of in other.items():
        torch.testing.assert_close(ours[name][: len(of)], of, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_where_the_callers_plugin_was_told_so():
    texts, before = drawn(8), weights(boosted()["actor"])
    settings = {"stage": 1, "precision": "fp32"}
    moved = []
    for max_norm in (0.0, 1e-3):
        given = boosted("LowLevelZeroPlugin", **settings, max_norm=max_norm)
        _, after = fitted(texts, 8, given=given)
        moved.append(sum(float((after[name] - before[name]).square().sum()) for name in after) ** 0.5)
    assert moved[0] > 0.1 * RATE
    assert moved[1] == pytest.approx(1e-3 * RATE, rel=1e-2)


def test_a_trainer_that_goes_on_leaves_the_very_weights_of_one_that_never_stopped(tmp_path):
    def trainer(epochs, **settings):
        given = boosted("HybridParallelPlugin", optimizer=torch.optim.AdamW, tp_size=1, pp_size=1, zero_stage=2)
        return given["actor"], ORPOTrainer(**given, max_epochs=epochs, accumulation_steps=2, **settings)

    pairs = drawn(11)
    actor, whole = trainer(3, save_interval=4, save_dir=str(tmp_path))
    whole.fit(loader(pairs, 2, shuffle=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-1_step-2", "epoch-2_step-4"]
    stood = json.loads((tmp_path / "epoch-1_step-2" / "running_states.json").read_text())
    assert stood == {"epoch": 1, "step": 2, "sample_start_index": 4}
    other, begun = trainer(3)
    begun.resume(str(tmp_path / "epoch-1_step-2"))
    begun.fit(loader(pairs, 2, shuffle=True))
    assert begun.num_train_step == whole.num_train_step == 9
    expected = weights(actor)
    assert all(of.equal(expected[name]) for name, of in weights(other).items())

    _, unlike = trainer(3)
    unlike.resume(str(tmp_path / "epoch-1_step-2"))
    with pytest.raises(ValueError, match=r"was written with data .*'batch_size': 2"):
        unlike.fit(loader(pairs, 3))
    unlike.resume(str(tmp_path))
    with pytest.raises(ValueError, match="holds no checkpoint"):
        unlike.fit(loader(pairs, 2))


def test_what_is_saved_loads_as_a_model_of_hugging_face_and_into_booster(tmp_path):
    from transformers import AutoModelForCausalLM

    given = boosted()
    ORPOTrainer(**given, save_interval=2, save_dir=str(tmp_path)).fit(loader(drawn(4), 2))
    folder = tmp_path / "epoch-0_step-2" / "modeling"
    ids = torch.arange(1, 9)[None]
    expected = given["actor"].unwrap()(ids).logits
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected)
    other = boosted(model=llama())
    other["booster"].load_model(other["actor"], str(folder))
    torch.testing.assert_close(other["actor"].unwrap()(ids).logits, expected)


def test_results_go_to_text_files_and_to_tensorboard_under_the_names_of_colossalchat(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given, texts = boosted(), drawn(6)
    trainer = ORPOTrainer(**given, lam=LAM, max_epochs=2, save_dir=str(tmp_path / "saved"))
    trainer.fit(loader(texts[:4], 2), loader(texts[4:], 1), log_dir=str(tmp_path / "logs"), use_wandb=True)
    lines = (tmp_path / "saved" / "eval_result_epoch1.txt").read_text().splitlines()
    assert lines[0] == "Evaluation Result:"
    told = {name: float(value) for name, value in (line.split(": ") for line in lines[1:])}
    assert list(told) == ["loss", "chosen_rewards", "rejected_rewards", "log_odds_ratio", "accuracy"]
    with torch.no_grad():
        assert told["loss"] == pytest.approx(float(by_hand(given["actor"].unwrap(), texts[4:])), rel=1e-5)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "eval_result_epoch0.txt",
        "eval_result_epoch1.txt",
    ]
    (run,) = (tmp_path / "logs" / "orpo").iterdir()
    events = EventAccumulator(str(run)).Reload()
    names = ("loss", "lr", "chosen_rewards", "rejected_rewards", "margin", "accuracy", "log_odds_ratio")
    for name in names:
        assert [event.step for event in events.Scalars(f"train/{name}")] == [1, 2, 3, 4], name
    rates = [event.value for event in events.Scalars("train/lr")]
    assert rates[0] == pytest.approx(RATE)
    assert rates == sorted(rates, reverse=True)
    assert list(run.glob("wandb/offline-run-*/*.wandb"))


def test_the_loss_is_that_of_its_file():
    ours = ORPOTrainer(**boosted()).loss.config
    overrides = ["+experiment=quickstart", "loss=orpo_colossalchat"]
    assert vars(ours) == vars(check(compose(overrides, None), overrides).config.loss)


def test_what_cannot_be_trained_so_is_refused_before_it_is(tmp_path):
    given = boosted()
    with pytest.raises(ValueError, match="save_dir"):
        ORPOTrainer(**given, save_interval=500)
    with pytest.raises(ValueError, match="from 1"):
        ORPOTrainer(**given, accumulation_steps=0)
    with pytest.raises(ValueError, match="log_dir"):
        ORPOTrainer(**given).fit(loader(drawn(2), 1), use_wandb=True)
    with pytest.raises(ValueError, match="object; ORPOTrainer trains with TorchDDPPlugin"):
        ORPOTrainer(**given, plugin=object())
    with pytest.raises(ValueError, match="dropout"):
        ORPOTrainer(**boosted(model=llama(attention_dropout=0.1)))
    with pytest.raises(ValueError, match="no length"):
        ORPOTrainer(**given).fit(iter([batch(*drawn(2))]))
    with pytest.raises(ValueError, match="no batch"):
        ORPOTrainer(**given).fit([])
    given["actor_optim"].add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0})
    with pytest.raises(ValueError, match="learning rates"):
        ORPOTrainer(**given).fit(loader(drawn(2), 1))
    assert not list(Path(tmp_path).iterdir())
