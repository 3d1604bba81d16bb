"""FlexAttention against attention part by part.

On a CPU it is not compiled, and has a backward pass only where torch does not look at the device.
"""

import pytest
import torch

from orpo_exp.models import flex
from orpo_exp.models.attention import EAGER
from orpo_exp.models.scratch import Scratch
from orpo_exp.models.segments import Attend, SeveralTexts
from orpo_exp.schema import ConfigError
from orpo_exp.types import Segment, Segments

ROWS = (
    (Segment(9, (4, 7)), Segment(1, (0, 3, 2, 5)), Segment(30, (6,))),
    (Segment(20, (11, 14)), Segment(5, ())),  # and padding
)
LENGTH = 67


pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


@pytest.fixture
def on_a_cpu(monkeypatch):
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "_flex_attention", lambda: flex_attention.flex_attention)


@pytest.mark.parametrize("window", [None, 6, 1000])
@pytest.mark.parametrize("groups", [1, 2])
def test_outputs_and_gradients_are_those_of_the_parts(on_a_cpu, window, groups):
    torch.manual_seed(0)
    of = [torch.randn(2, heads, LENGTH, 16, requires_grad=True) for heads in (4, 4 // groups, 4 // groups)]
    scored = torch.zeros(2, LENGTH, 1, 1)  # what pads a row is scored nowhere
    for number, row in enumerate(ROWS):
        scored[number, : sum(segment.trunk + sum(segment.branches) for segment in row)] = 1
    weights = torch.randn(2, LENGTH, 4, 16) * scored
    found = []
    for way in (Attend, flex.FlexAttend):
        attended, _ = way(Segments(ROWS))(None, *of, None, scaling=0.3, sliding_window=window)
        found.append((attended * scored, torch.autograd.grad((attended * weights).sum(), of)))
    (exact, exact_gradients), (ours, gradients) = found
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients, exact_gradients, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def test_a_block_that_nobody_sees_is_skipped():
    """Two texts of 512 tokens: of the 8 x 8 blocks of 128 the upper right half and those between the texts."""
    mask = flex.FlexAttend(Segments(((Segment(512, ()), Segment(512, ())),)))._block_mask(
        1024, None, torch.device("cpu")
    )
    assert mask.sparsity() == pytest.approx(100 * (1 - 2 * 10 / 64))


@pytest.mark.parametrize(("setting", "allowed"), [({"dropout": 0.1}, "dropout"), ({"attention": EAGER}, "=eager")])
def test_with_what_it_cannot_do_it_is_refused_before_anything_is_loaded(setting, allowed):
    with pytest.raises(ConfigError, match=rf"several_texts.*{allowed}"):
        Scratch(Scratch.Config(several_texts=SeveralTexts.flex, **setting)).check()


def test_on_a_cpu_it_is_refused():
    with pytest.raises(ConfigError, match="parts on a CPU"):
        Scratch(Scratch.Config(several_texts=SeveralTexts.flex)).prepare([], 0)
