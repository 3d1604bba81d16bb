"""What must hold with every version of transformers that is supported, beside the other tests marked `versions`.

`bash .ci/versions` runs them with each; with the default version they are among the others.
"""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from support import cut_back, numbers, order_of, run_all

from orpo_exp.export import export
from orpo_exp.models.pretrained import Pretrained
from orpo_exp.plugins import start_ranks

pytestmark = pytest.mark.versions

QUICKSTART = ("+experiment=quickstart", "train.max_steps=8", "train.save_every=3", "train.eval_every=4")


def assert_same_bits(folder: Path) -> None:
    """What was cut back and went on is what it was."""
    whole = folder.with_name(f"{folder.name} whole")
    assert "resumed at step 3 of 8" in (folder / "run.log").read_text()
    assert numbers(folder) == numbers(whole)
    for file in ("model/model.safetensors", "samples.md"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes()


def test_the_quickstart_goes_on_bit_for_bit_without_a_word_about_versions(run, capfd):
    folder = run(*QUICKSTART)
    cut_back(folder, 3)
    run(*QUICKSTART)
    assert_same_bits(folder)
    said = "".join(capfd.readouterr())
    assert "completed after 8 of 8 steps" in said
    assert "deprecated" not in said


@pytest.mark.parallel
def test_two_ranks_of_zero2_have_the_curve_of_one_and_go_on_bit_for_bit(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    order = replace(order_of(*QUICKSTART, "plugin=zero2"), folder=tmp_path / "zero2")
    assert start_ranks(2, run_all, [order], [(order, 3)]) == 0
    assert_same_bits(order.folder)
    for one, two in zip(numbers(run(*QUICKSTART)), numbers(order.folder), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_hybrid_goes_with_one_version_and_is_refused_by_name_with_others(run, capsys):
    if version("transformers").startswith("4.51."):
        order_of("+experiment=quickstart", "plugin=hybrid")
        return
    run("+experiment=quickstart", "plugin=hybrid", code=2)
    said = capsys.readouterr().err
    for part in ("plugin", "hybrid", "transformers==4.51.3", "plugin=zero2", version("transformers")):
        assert part in said


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_the_type_of_weights_is_found_under_the_names_that_versions_have_for_it(run, tmp_path, name):
    """A run's folder may be exported, and its model loaded, where another version is installed."""
    import torch
    from safetensors.torch import load_file

    more = ("plugin=zero2", "plugin.precision=bf16_weights", "train.samples=0", "tracker=[]")
    folder = run(*QUICKSTART, *more)
    settings = folder / "checkpoints" / "model" / "config.json"
    content = json.loads(settings.read_text())
    (written,) = (content.pop(key) for key in ("torch_dtype", "dtype") if key in content)
    settings.write_text(json.dumps(content | {name: written}))
    export(folder, tmp_path / "exported")
    weights = load_file(tmp_path / "exported" / "model.safetensors")
    assert {of.dtype for of in weights.values()} == {torch.bfloat16}
    source = Pretrained(Pretrained.Config(path=str(tmp_path / "exported")))
    model = source.prepare([], seed=0).build().model
    assert {of.dtype for of in model.parameters()} == {torch.float32}
    assert all(of.equal(weights[key].float()) for key, of in model.named_parameters())
