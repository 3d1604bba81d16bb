"""From states to log-probabilities, against torch's own log_softmax in float64, with its gradients."""

import pytest
import torch
from torch import Tensor

from orpo_exp.scoring import token_logps

ROWS, HIDDEN, COLUMNS = 23, 8, 501


def heads(weight: Tensor, bias: Tensor) -> dict:
    """A head, and others that do something behind it."""
    return {
        "plain": lambda states: states @ weight.T,
        "bias": lambda states: states @ weight.T + bias,
        "scaled": lambda states: states @ weight.T * 0.0625,
        "soft cap": lambda states: 30 * torch.tanh(states @ weight.T / 30),
        "that keeps what it gives": lambda states: torch.tanh(states @ weight.T),
    }


@pytest.mark.parametrize("kind", heads(torch.empty(0, 0), torch.empty(0)))
@pytest.mark.parametrize("chunk_numbers", [10**9, 5 * COLUMNS, 1])
def test_values_and_gradients_are_those_of_log_softmax(kind, chunk_numbers, monkeypatch):
    monkeypatch.setattr("orpo_exp.scoring.softmax.CACHED_NUMBERS", 4 * COLUMNS)  # the last rows are 3
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, HIDDEN, generator=generator)
    weight, bias = torch.randn(COLUMNS, HIDDEN, generator=generator), torch.randn(COLUMNS, generator=generator)
    target = torch.randint(COLUMNS, (ROWS,), generator=generator)
    share = torch.randn(ROWS, generator=generator)  # of each token in the loss

    given = [of.clone().requires_grad_() for of in (states, weight, bias)]
    logps, squares = token_logps(given[0], heads(*given[1:])[kind], target, chunk_numbers, log_squared=True)
    (logps * share).sum().backward()

    exact = [of.double().requires_grad_() for of in (states, weight, bias)]
    expected = heads(*exact[1:])[kind](exact[0]).log_softmax(1)
    picked = expected[torch.arange(ROWS), target]
    (picked * share).sum().backward()
    torch.testing.assert_close(logps.double(), picked, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares.double(), (2 * expected).logsumexp(1), rtol=1e-5, atol=1e-5)
    assert not squares.requires_grad
    for ours, theirs in zip(given, exact, strict=True):
        if theirs.grad is not None:
            assert (ours.grad - theirs.grad).abs().max() <= 1e-5 * theirs.grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_are_summed_in_float32(dtype):
    states = torch.randn(ROWS, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight = torch.randn(COLUMNS, HIDDEN, generator=torch.Generator().manual_seed(2)).to(dtype)
    target = torch.arange(ROWS)
    (logps,) = token_logps(states, lambda of: of @ weight.T, target)
    exact = (states @ weight.T).double().log_softmax(1)[target, target]
    torch.testing.assert_close(logps.double(), exact, rtol=1e-6, atol=1e-5)


def test_a_token_without_any_probability_is_told():
    logits = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    (logps,) = token_logps(torch.eye(2), lambda states: logits[: len(states)].clone(), torch.tensor([0, 0]))
    assert logps.tolist() == [0.0, -torch.inf]


def test_a_second_backward_pass_through_the_same_logits_is_refused():
    states = torch.randn(3, 4, requires_grad=True)
    (logps,) = token_logps(states, lambda of: of @ torch.ones(4, 6), torch.arange(3))
    loss = logps.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
