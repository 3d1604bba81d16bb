"""Which metric ranks, and what is said of metrics that runs compute in different ways."""

from dataclasses import replace

import pytest
from sweeps.builder import DECLARED, make_run, make_sweep

from orpo_exp.metrics import REWARDS
from orpo_exp.sweeps import summary
from orpo_exp.sweeps.summary import write_summary

AGAINST_REFERENCE = "beta times log-probability less the reference's"
MEAN = "lam times mean log-probability"


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(summary, "draw_pictures", lambda *_: {})


def declared(definition):
    return DECLARED | {name: replace(metric, definition=definition) for name, metric in REWARDS.items()}


def losses(folder, definitions, metrics=("rewards/accuracy", "logps/accuracy", "rewards/margin")):
    """A sweep over losses whose rewards are defined so (None: the run says nothing), the last one having the better
    values but for the log-probabilities."""
    for i, place in enumerate(make_sweep(folder, [{"loss": loss} for loss in definitions])):
        values = {name: (0.6 - i / 10 if name.startswith("logps") else 0.5 + i / 10) for name in metrics}
        definition = list(definitions.values())[i]
        make_run(place, values, declared=None if definition is None else declared(definition))
    return folder


def test_rewards_rank_settings_that_define_them_alike(tmp_path):
    answer = write_summary(losses(tmp_path / "s", {"dpo": AGAINST_REFERENCE, "ipo": AGAINST_REFERENCE}))
    assert "Best by rewards/accuracy (higher is better): loss=ipo" in answer.text
    assert "different ways" not in (tmp_path / "s" / "summary.md").read_text()


def test_folders_that_declare_nothing_are_ranked_as_before(tmp_path):
    answer = write_summary(losses(tmp_path / "s", {"dpo": None, "orpo": None}))
    assert answer.metric == "rewards/accuracy"
    assert "different ways" not in (tmp_path / "s" / "summary.md").read_text()


def test_log_probabilities_rank_settings_that_define_rewards_in_different_ways(tmp_path):
    answer = write_summary(losses(tmp_path / "s", {"dpo": AGAINST_REFERENCE, "orpo": MEAN, "simpo": MEAN}))
    assert "Best by logps/accuracy (higher is better): loss=dpo" in answer.text
    assert "different ways" not in answer.text
    page = (tmp_path / "s" / "summary.md").read_text()
    for metric in ("rewards/accuracy", "rewards/margin"):
        assert (
            f"Take care: {metric} is computed in different ways, and compares only settings that do so alike:"
            f" {AGAINST_REFERENCE} (loss=dpo); {MEAN} (loss=orpo; loss=simpo)." in page
        )


def test_a_metric_that_was_asked_for_ranks_with_a_warning(tmp_path):
    folder = losses(tmp_path / "s", {"dpo": AGAINST_REFERENCE, "orpo": MEAN})
    answer = write_summary(folder, "rewards/accuracy")
    assert "Best by rewards/accuracy (higher is better): loss=orpo" in answer.text
    _, doubts = answer.text.split("\n\nTake care: ")
    assert "rewards/accuracy is computed in different ways" in doubts
    assert (folder / "summary.md").read_text().count("rewards/accuracy is computed in different ways") == 1


def test_a_run_that_declares_nothing_is_not_taken_to_be_alike(tmp_path):
    answer = write_summary(losses(tmp_path / "s", {"dpo": AGAINST_REFERENCE, "orpo": None}))
    assert answer.metric == "logps/accuracy"
    page = (tmp_path / "s" / "summary.md").read_text()
    assert f"{AGAINST_REFERENCE} (loss=dpo); not said how (loss=orpo)." in page


def test_where_not_all_have_log_probabilities_rewards_rank_with_a_warning(tmp_path):
    definitions = {"dpo": AGAINST_REFERENCE, "orpo": MEAN}
    answer = write_summary(losses(tmp_path / "s", definitions, ("rewards/accuracy", "loss")))
    assert answer.metric == "rewards/accuracy"
    assert "rewards/accuracy is computed in different ways" in answer.text
    assert write_summary(losses(tmp_path / "t", definitions, ("loss",))).metric == "loss"


def test_many_settings_are_counted_not_named(tmp_path):
    definitions = {"dpo": AGAINST_REFERENCE} | {f"loss{i}": MEAN for i in range(7)}
    write_summary(losses(tmp_path / "s", definitions))
    assert f"{AGAINST_REFERENCE} (loss=dpo); {MEAN} (7 settings)." in (tmp_path / "s" / "summary.md").read_text()


def test_of_many_ways_only_some_are_told(tmp_path):
    """A sweep over what scales the rewards has one for each value."""
    write_summary(losses(tmp_path / "s", {f"loss{i}": f"{i} * log-ratio" for i in range(9)}))
    page = (tmp_path / "s" / "summary.md").read_text()
    assert "5 * log-ratio (loss=loss5); 3 further ways." in page
    assert "6 * log-ratio" not in page
