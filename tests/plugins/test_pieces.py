"""Pieces of parameters: cut and put together by hand, written by one split and read by another."""

import json

import pytest
import torch
from torch import nn

from orpo_exp import export
from orpo_exp.plugins.pieces import POLICY, Held, Piece, Pieces, load_pieces, master_parts, save_pieces, write_model

WHOLE = torch.arange(20.0).view(4, 5)


def test_what_is_cut_comes_back_to_its_place():
    left = Piece.block((4, 5), 1, 0, 3)
    assert left.cut(WHOLE).tolist() == [0, 1, 2, 5, 6, 7, 10, 11, 12, 15, 16, 17]
    part = left.range(5, 8)
    assert part.cut(WHOLE).tolist() == [7, 10, 11]
    again = torch.zeros(4, 5)
    part.put(again, torch.tensor([70.0, 100.0, 110.0]))
    assert again.nonzero().tolist() == [[1, 2], [2, 0], [2, 1]]
    assert again[1, 2] == 70


def test_a_block_or_a_range_that_reaches_into_a_padding_ends_where_the_parameter_does():
    assert Piece.block((5, 2), 0, 3, 6).numel == 4
    assert Piece.block((5, 2), 0, 6, 9).numel == 0
    assert Piece.whole((5,)).range(4, 8).cut(torch.arange(5.0)).tolist() == [4]
    assert Piece.whole((5,)).range(8, 12).numel == 0
    assert Piece.whole(()).cut(torch.tensor(7.0)).tolist() == [7]


def adam(weights: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(nn.Parameter(weight.clone()) for weight in weights)


def test_another_split_reads_the_same_numbers(tmp_path):
    """Written by two ranks with a column block each, read by three with a flat range each, padded."""
    for rank in range(2):
        piece = Piece.block((4, 5), 1, 3 * rank, 3 * rank + 3)
        optimizer = adam([piece.cut(WHOLE).view(4, -1)])
        (weight,) = optimizer.param_groups[0]["params"]
        weight.grad = weight.detach() + 1
        optimizer.step()
        save_pieces(tmp_path, POLICY, rank, [Held("w", piece, weight)], optimizer)
    one = adam([WHOLE])
    (expected,) = one.param_groups[0]["params"]
    expected.grad = WHOLE + 1
    one.step()
    for rank in range(3):
        masters = {0: torch.zeros(7)}
        (held,) = master_parts([Held("w", Piece.whole((4, 5)), 0)], {id(0): masters[0]}, rank)
        optimizer = torch.optim.Adam([held.tensor])
        load_pieces(Pieces(tmp_path, POLICY), [held], optimizer)
        count = min(7, 20 - 7 * rank)
        assert held.tensor[:count].equal(expected.flatten()[7 * rank : 7 * rank + count])
        state = optimizer.state[held.tensor]
        assert state["step"] == 1
        assert state["exp_avg_sq"][:count].equal(one.state[expected]["exp_avg_sq"].flatten()[7 * rank :][:count])


def test_large_weights_are_several_files_with_an_index(tmp_path):
    tensors = [(name, torch.full((10,), float(i))) for i, name in enumerate("abc")]
    write_model(tmp_path, tensors, most=80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 120
    assert [index["weight_map"][name][6:11] for name in "abc"] == ["00001", "00001", "00002"]
    assert not list(tmp_path.glob("part-*"))


RUN = ("+experiment=quickstart", "train.max_steps=4", "train.save_every=2", "train.samples=0")


@pytest.mark.versions
def test_an_export_of_the_last_checkpoint_is_the_model_that_the_run_saved(run, tmp_path, capsys):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run(*RUN, "tracker=[]")
    assert export.main([str(folder), str(tmp_path / "last")]) == 0
    assert "step-00000004" in capsys.readouterr().out
    assert export.main([str(folder / "checkpoints" / "step-00000002"), str(tmp_path / "former")]) == 0
    ids = torch.arange(5, 25)[None]
    logits = {
        name: AutoModelForCausalLM.from_pretrained(place)(ids).logits
        for name, place in {"run": folder / "model", "last": tmp_path / "last", "former": tmp_path / "former"}.items()
    }
    assert logits["last"].equal(logits["run"])
    assert not logits["former"].equal(logits["run"])
    assert len(AutoTokenizer.from_pretrained(tmp_path / "last")) == len(AutoTokenizer.from_pretrained(folder / "model"))


@pytest.mark.parametrize("given", ["nothing", "empty"])
def test_what_cannot_be_exported_is_refused(tmp_path, capsys, given):
    (tmp_path / "empty").mkdir()
    assert export.main([str(tmp_path / given), str(tmp_path / "new")]) == 2
    assert "neither a run with checkpoints nor a checkpoint" in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    assert export.main([str(tmp_path / given), str(tmp_path / "new")]) == 2
    assert "there already" in capsys.readouterr().err
