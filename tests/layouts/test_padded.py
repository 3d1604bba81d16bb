import torch
from support import pair, random_pairs
from torch import Tensor, nn

from orpo_exp.layouts.padded import Padded
from orpo_exp.scoring import captured_hidden, pair_logps, token_logps
from orpo_exp.types import Need, PairLogps, TokenizedPair

VOCABULARY = 23
WITH_PROMPT = frozenset({Need.prompt_logps})


class CausalToy(nn.Module):
    """The smallest causal LM with a head of its own: each state sums up all tokens so far."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(input_ids).cumsum(1)))


def scored(model: CausalToy, pairs: list[TokenizedPair], needs: frozenset[Need] = WITH_PROMPT) -> PairLogps:
    batch = Padded(Padded.Config()).collate(pairs, needs)
    with captured_hidden(model.head) as hidden:
        model(**batch.inputs)
    return pair_logps(hidden[0], model.head, batch.score)


def one_by_one(model: CausalToy, prompt: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: log softmax of the whole sequence's logits, read off at each token; prompt and answer."""
    ids = torch.cat([prompt, answer]).long()
    logps = model(ids[None])[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return logps[: len(prompt) - 1], logps[len(prompt) - 1 :]


def test_every_scored_token_is_the_right_one():
    model, pairs = CausalToy(), random_pairs(7, VOCABULARY)
    logps = scored(model, pairs)
    assert logps.prompt is not None
    for i, p in enumerate(pairs):
        prompt, chosen = one_by_one(model, p.prompt_ids, p.chosen_ids)
        _, rejected = one_by_one(model, p.prompt_ids, p.rejected_ids)
        for ours, exact in ((logps.prompt, prompt), (logps.chosen, chosen), (logps.rejected, rejected)):
            torch.testing.assert_close(ours.tokens()[i], exact, rtol=1e-6, atol=1e-6)


def test_padding_changes_nothing():
    model, (short, long) = CausalToy(), [pair(0, [1, 2], [3], [4, 5]), pair(1, [6] * 30, [7] * 9, [8] * 20)]
    alone, padded = scored(model, [short]), scored(model, [short, long])
    assert torch.equal(alone.chosen.tokens()[0], padded.chosen.tokens()[0])
    assert torch.equal(alone.rejected.tokens()[0], padded.rejected.tokens()[0])


def test_a_token_that_pads_is_scored_where_it_belongs_to_an_answer():
    """pad == EOS == 0: the answer's own 0 counts, the padding's do not."""
    model, pairs = CausalToy(), [pair(0, [1, 2], [3, 0], [0]), pair(1, [6, 6, 6], [7, 7, 7, 0], [8] * 9 + [0])]
    logps = scored(model, pairs, frozenset())
    assert logps.chosen.lengths.tolist() == [2, 4]
    assert logps.rejected.lengths.tolist() == [1, 10]
    for i, p in enumerate(pairs):
        torch.testing.assert_close(logps.rejected.tokens()[i], one_by_one(model, p.prompt_ids, p.rejected_ids)[1])


def test_the_last_token_of_a_row_is_not_computed():
    batch = Padded(Padded.Config()).collate([pair(0, [1, 2], [3, 4], [5])], frozenset())
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3], [1, 2, 0]]


def test_a_batch_without_pairs_runs_and_has_a_zero_gradient():
    model = CausalToy()
    logps = scored(model, [])
    assert len(logps.chosen.lengths) == 0
    logps.chosen.sum().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters())


def test_the_models_own_head_sees_no_position():
    model = CausalToy()
    with captured_hidden(model.head) as hidden:
        logits = model(torch.ones(2, 5, dtype=torch.int64))
    assert logits.shape == (2, 0, VOCABULARY)
    assert hidden[0].shape == (2, 5, 8)
    assert model(torch.ones(2, 5, dtype=torch.int64)).shape == (2, 5, VOCABULARY)  # and all of them again afterwards


def test_chunks_change_neither_value_nor_gradient():
    model = CausalToy()
    hidden, target = torch.randn(50, 8), torch.randint(VOCABULARY, (50,))
    results = []
    for chunk_numbers in (10**9, 7 * VOCABULARY, 1):
        states = hidden.clone().requires_grad_()
        model.zero_grad()
        (logps,) = token_logps(states, model.head, target, chunk_numbers)
        (logps * torch.arange(50)).sum().backward()
        results.append((logps.detach(), states.grad, model.head.weight.grad))
    for other in results[1:]:
        for ours, whole in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
