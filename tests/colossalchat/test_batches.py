"""ColossalChat's batches as pairs."""

import logging
from dataclasses import astuple

import pytest
import torch
from colossalchat.small import batch, drawn, loader

from orpo_exp.colossalchat.batches import Stream, pairs_of
from orpo_exp.plugins import Place, Ranks
from orpo_exp.plugins.ranks import left_afterwards

TEXTS = (([5, 6], [7, 8, 9], [10]), ([11], [12], [13, 14]))


def plain(pairs):
    return [(p.prompt_ids.tolist(), p.chosen_ids.tolist(), p.rejected_ids.tolist()) for p in pairs]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_gone(side):
    assert plain(pairs_of(batch(*TEXTS, side=side), apply_loss_mask=True)) == list(TEXTS)


def test_an_eos_that_pads_as_well_stays_the_end_of_its_answer():
    eos = 2
    of = batch(([5, 6], [7, eos], [8, eos]), pad=eos)
    for answer in ("chosen", "reject"):
        of[f"{answer}_attention_mask"] = of[f"{answer}_input_ids"] != eos  # as some collators make it
    assert plain(pairs_of(of, apply_loss_mask=True)) == [([5, 6], [7, eos], [8, eos])]


def test_without_the_loss_mask_all_but_the_first_token_is_the_answer():
    (pair,) = pairs_of(batch(TEXTS[0]), apply_loss_mask=False)
    assert plain([pair]) == [([5], [6, 7, 8, 9], [6, 10])]


def test_what_stands_unscored_behind_an_answer_is_left_out():
    of = batch(([5, 6], [7, 8, 9], [10, 9]))
    of["chosen_loss_mask"][0, 4] = of["reject_loss_mask"][0, 3] = False
    assert plain(pairs_of(of, apply_loss_mask=True)) == [([5, 6], [7, 8], [10])]


def test_a_pair_of_which_nothing_is_left_is_skipped_and_told(caplog):
    of = batch(*TEXTS)
    of["reject_loss_mask"][0] = False
    with caplog.at_level(logging.WARNING):
        assert plain(pairs_of(of, apply_loss_mask=True)) == [TEXTS[1]]
    assert "skipped 1 pairs" in caplog.text


def test_what_cannot_be_a_pair_is_refused_with_its_place():
    lacking = batch(*TEXTS)
    del lacking["reject_loss_mask"]
    with pytest.raises(ValueError, match="reject_loss_mask is missing"):
        pairs_of(lacking, apply_loss_mask=True)
    gap = batch(*TEXTS)
    gap["chosen_loss_mask"][0, 3] = False
    with pytest.raises(ValueError, match="pair 0 of a batch has gaps"):
        pairs_of(gap, apply_loss_mask=True)
    other = batch(*TEXTS)
    other["reject_input_ids"][1, 0] = 39
    with pytest.raises(ValueError, match="pair 1 of a batch do not continue the same prompt"):
        pairs_of(other, apply_loss_mask=True)


@pytest.fixture
def ranks():
    with left_afterwards():
        yield Ranks(Place(), torch.device("cpu"))


def steps(stream: Stream, first: int, last: int) -> list[list]:
    return [plain(stream.draw([place])) for place in range(first, last)]


def test_every_pair_once_an_epoch_in_another_order_and_the_last_step_short(ranks):
    texts = drawn(11)
    stream = Stream(loader(texts, 2, shuffle=True), ranks, accumulated=4, apply_loss_mask=True, start=0, seed=3)
    assert (stream.batches_per_epoch, stream.steps_per_epoch) == (6, 2)
    one, two = steps(stream, 0, 2), steps(stream, 2, 4)
    assert [len(step) for step in one] == [8, 3]
    for epoch in (one, two):
        assert sorted(pair for step in epoch for pair in step) == sorted(texts)
    assert one != two
    assert [stream.batches_done(step) for step in (1, 2, 3)] == [4, 6, 4]


def test_a_stream_that_begins_anywhere_goes_on_with_the_same_pairs(ranks):
    def stream() -> Stream:
        return Stream(loader(drawn(11), 2, shuffle=True), ranks, 2, apply_loss_mask=True, start=0, seed=3)

    whole = steps(stream(), 0, 9)
    for begun in (1, 2, 3, 5):
        assert steps(stream(), begun, 9) == whole[begun:]


class Stateful:
    """A sampler as ColossalChat's, that was told where to begin."""

    def __init__(self, size: int, start_index: int) -> None:
        self.size, self.start_index, self.epochs = size, start_index, []

    def __iter__(self):
        return iter(range(self.start_index, self.size))

    def __len__(self) -> int:
        return self.size - self.start_index

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def set_start_index(self, start_index: int) -> None:
        self.start_index = start_index


def test_a_sampler_that_begins_in_an_epoch_does_so_in_that_epoch_alone(ranks):
    from torch.utils.data import DataLoader

    texts = drawn(8)
    plainly = loader(texts, 2)
    sampler = Stateful(8, start_index=4)
    stream = Stream(DataLoader(plainly.dataset, 2, sampler=sampler), ranks, 2, apply_loss_mask=True, start=1, seed=0)
    assert (stream.steps_per_epoch, stream.begun) == (2, 3)
    assert steps(stream, 3, 6) == [texts[4:], texts[:4], texts[4:]]
    assert sampler.epochs == [1, 2]


def test_rows_are_counted_over_the_whole_stream(ranks):
    stream = Stream(loader(drawn(4), 2), ranks, 1, apply_loss_mask=True, start=0, seed=0)
    assert [astuple(pair)[0] for place in range(2) for pair in stream.draw([place])] == [0, 1, 2, 3]
