"""From states to log-probabilities, against torch's own log_softmax in float64, with its gradients."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from orpo_exp.scoring import LinearHead, head_of, token_logps

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


def linear_heads(weight: Tensor, bias: Tensor) -> dict:
    """The same, as a module and what is done behind it."""
    return {
        "plain": LinearHead(weight, None, lambda logits: logits),
        "bias": LinearHead(weight, bias, lambda logits: logits),
        "scaled": LinearHead(weight, None, lambda logits: logits * 0.0625),
        "soft cap": LinearHead(weight, None, lambda logits: 30 * torch.tanh(logits / 30)),
        "that keeps what it gives": LinearHead(weight, None, torch.tanh),
    }


@pytest.mark.parametrize("kind", heads(torch.empty(0, 0), torch.empty(0)))
@pytest.mark.parametrize("chunk_numbers", [10**9, 5 * COLUMNS, 1])
@pytest.mark.parametrize("ours", [heads, linear_heads])
def test_values_and_gradients_are_those_of_log_softmax(ours, kind, chunk_numbers, monkeypatch):
    monkeypatch.setattr("orpo_exp.scoring.softmax.CACHED_NUMBERS", 4 * COLUMNS)  # the last rows are 3
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, HIDDEN, generator=generator)
    weight, bias = torch.randn(COLUMNS, HIDDEN, generator=generator), torch.randn(COLUMNS, generator=generator)
    target = torch.randint(COLUMNS, (ROWS,), generator=generator)
    share = torch.randn(ROWS, generator=generator)  # of each token in the loss

    given = [of.clone().requires_grad_() for of in (states, weight, bias)]
    logps, squares = token_logps(given[0], ours(*given[1:])[kind], target, chunk_numbers, log_squared=True)
    (logps * share).sum().backward()

    exact = [of.double().requires_grad_() for of in (states, weight, bias)]
    expected = heads(*exact[1:])[kind](exact[0]).log_softmax(1)
    picked = expected[torch.arange(ROWS), target]
    (picked * share).sum().backward()
    torch.testing.assert_close(logps.double(), picked, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares.double(), (2 * expected).logsumexp(1), rtol=1e-5, atol=1e-5)
    assert not squares.requires_grad
    for of, theirs in zip(given, exact, strict=True):
        if theirs.grad is not None:
            assert (of.grad - theirs.grad).abs().max() <= 1e-5 * theirs.grad.abs().max()


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


def test_another_backward_pass_through_a_linear_head_makes_its_logits_again():
    states, weight = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    (logps,) = token_logps(states, LinearHead(weight, None, lambda logits: logits), torch.arange(3))
    first = torch.autograd.grad(logps.sum(), (states, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(logps.sum(), (states, weight)), first)


def test_logits_that_wait_for_their_backward_pass_are_not_written_over():
    """Several micro-batches are in flight at once, as in a pipeline."""
    head = LinearHead(torch.randn(6, 4), None, lambda logits: logits)
    given = [torch.randn(3, 4, requires_grad=True) for _ in range(3)]
    together = [token_logps(states, head, torch.arange(3))[0].sum() for states in given]
    for states, logps in reversed(list(zip(given, together, strict=True))):
        (alone,) = torch.autograd.grad(token_logps(states, head, torch.arange(3))[0].sum(), states)
        assert torch.autograd.grad(logps, states)[0].equal(alone)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradients_that_chunks_give_a_head_share_one_buffer(frozen):
    rows, columns, hidden = 40, 4096, 256
    weight = torch.randn(columns, hidden, requires_grad=not frozen)
    states = torch.randn(rows, hidden, requires_grad=True)
    head = LinearHead(weight, None, lambda logits: logits)
    (logps,) = token_logps(states, head, torch.arange(rows), 5 * columns)
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(logps.sum(), states if frozen else (states, weight))
    changes = [of for of in profile.profiler.kineto_results.events() if of.name() == "[memory]"]
    assert changes
    peak = max(itertools.accumulate(of.nbytes() for of in sorted(changes, key=lambda of: of.start_ns())))
    assert peak / (4 * columns * hidden) == pytest.approx(0 if frozen else 1, abs=0.1)


def test_a_head_that_is_more_than_a_product_is_called():
    class Louder(nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            return 2 * super().forward(states)

    assert isinstance(head_of(nn.Linear(4, 6), lambda logits: logits), LinearHead)
    head = head_of(Louder(4, 6), lambda logits: logits + 1)
    assert not isinstance(head, LinearHead)
    assert head(torch.zeros(2, 4)).shape == (2, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_linear_head_computes_in_what_autocast_says(dtype):
    module, states, target = nn.Linear(HIDDEN, COLUMNS), torch.randn(ROWS, HIDDEN), torch.arange(ROWS)
    with torch.autocast("cpu", dtype):
        (logps,) = token_logps(states, head_of(module, lambda logits: logits), target)
        logps.sum().backward()
        ours = [of.grad.clone() for of in module.parameters()]
        module.zero_grad()
        logits = module(states)
    exact = logits.float().log_softmax(1)[target, target]
    exact.sum().backward()
    torch.testing.assert_close(logps, exact, rtol=1e-6, atol=1e-5)
    for got, of in zip(ours, module.parameters(), strict=True):
        assert got.dtype == of.grad.dtype == torch.float32
        assert (got - of.grad).abs().max() <= 2e-2 * of.grad.abs().max()
