"""Gemini against a training by hand, on a CPU: its own code runs, its GPU is a label (gemini_on_cpu.py)."""

import math
from dataclasses import replace

import pytest
import torch
from gemini_on_cpu import emulate
from support import random_pairs
from torch import Tensor

from orpo_exp.layouts.padded import Padded
from orpo_exp.plugins import Place, Precision, Which
from orpo_exp.plugins.chunks import piece_in, plain
from orpo_exp.plugins.gemini import Gemini, Placement
from orpo_exp.plugins.greedy import greedy
from orpo_exp.plugins.pieces import Piece
from orpo_exp.plugins.ranks import left_afterwards
from orpo_exp.plugins.whole import WholeModel
from orpo_exp.schema import ConfigError
from orpo_exp.scoring import token_logps
from orpo_exp.types import Builder, BuiltModel, LossOutput, PairLogps

VOCABULARY, LR = 40, 1e-2
PAIRS = random_pairs(6, VOCABULARY)
BATCHES = [Padded(Padded.Config()).collate(PAIRS[i : i + 2], frozenset()) for i in (0, 2, 4)]
PLACEMENTS = {
    "all on the GPU": {},
    "half of the weights stay whole": {"shard_param_frac": 0.5},
    "half of the optimizer in the host's memory": {"offload_optim_frac": 0.5},
    "all in the host's memory": {"offload_optim_frac": 1.0, "offload_param_frac": 1.0},
    "auto": {"placement_policy": Placement.auto},
}


def made() -> BuiltModel:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, tie_word_embeddings=True, **sizes)
    return BuiltModel(Qwen2ForCausalLM(config), lambda logits: logits)


def adamw(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1.0, fused=True)


def likelihood(number: int, logps: PairLogps) -> LossOutput:
    loss = -logps.chosen.sum().sum() / len(PAIRS)
    return LossOutput(loss, {"nll": loss.detach()})


@pytest.fixture
def start(monkeypatch):
    """Makes a plugin whose policy is prepared. The GPU has room for some of the model's 60 kB."""
    emulate(monkeypatch.setattr, room=80_000)
    with left_afterwards():

        def made_so(max_grad_norm: float | None = None, **settings: object) -> Gemini:
            plugin = Gemini(Gemini.Config(**settings), Place())
            plugin.prepare(Builder(made, made), adamw, max_grad_norm)
            return plugin

        yield made_so


def train(plugin: Gemini, steps: int) -> list[tuple[float, float | None]]:
    """Loss and norm of each step."""
    found = []
    for _ in range(steps):
        outputs = plugin.forward_backward(BATCHES, likelihood)
        found.append((sum(float(output.terms["nll"]) for output in outputs), plugin.step(LR)))
    return found


def masters(plugin: Gemini) -> dict[str, Tensor]:
    whole = {name: torch.full(part.piece.shape, torch.nan) for name, part in parts(plugin).items()}
    for name, part in parts(plugin).items():
        part.piece.put(whole[name], part.tensor.detach()[: part.piece.numel])
    return whole


def parts(plugin: Gemini) -> dict[str, object]:
    return {part.name: part for part in plugin.policy.held()}


class ByHand:
    """bfloat16 weights and gradients, float32 copies that AdamW updates: what Gemini should do, without it."""

    def __init__(self) -> None:
        model = made().model
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.to(torch.bfloat16)
        for name, buffer in model.named_buffers():
            buffer.data = buffers[name]
        self.scorer = WholeModel(BuiltModel(model, lambda logits: logits), torch.device("cpu"), torch.float32)
        self.weights = dict(model.named_parameters())
        self.masters = {name: of.detach().float().requires_grad_() for name, of in self.weights.items()}
        self.optimizer = torch.optim.AdamW(self.masters.values(), lr=LR, fused=True)

    def train(self, steps: int, max_grad_norm: float = math.inf) -> list[tuple[float, float]]:
        found = []
        for _ in range(steps):
            losses = [likelihood(0, self.scorer.logps(batch)).loss for batch in BATCHES]
            for loss in losses:
                loss.backward()
            grads = {name: of.grad.double() for name, of in self.weights.items()}
            norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads.values()))
            for name, master in self.masters.items():
                master.grad = (grads[name] * min(1.0, max_grad_norm / norm)).float()
                self.weights[name].grad = None
            self.optimizer.step()
            for name, weight in self.weights.items():
                weight.data.copy_(self.masters[name])
            found.append((sum(map(float, losses)), norm))
        return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_at_once_with_what_to_choose(run, capsys):
    run("+experiment=quickstart", "plugin=gemini", code=2)
    said = capsys.readouterr()
    assert "no GPU" in said.out + said.err
    assert "Choose plugin=zero2" in said.out + said.err


@pytest.mark.versions
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_it_trains_as_one_does_by_hand(start, placement):
    """To the last bit, wherever things lie; the norm, which is added up in float32, to 1e-6."""
    plugin, hand = start(**PLACEMENTS[placement]), ByHand()
    before = plugin.score(BATCHES)
    assert type(before.chosen.values) is Tensor
    assert before.chosen.values.equal(hand.scorer.score(BATCHES).chosen.values)
    for (loss, norm), (expected_loss, expected_norm) in zip(train(plugin, 4), hand.train(4), strict=True):
        assert loss == expected_loss
        assert norm == pytest.approx(expected_norm, rel=1e-6)
    assert all(of.equal(hand.masters[name]) for name, of in masters(plugin).items())
    assert plugin.score(BATCHES).chosen.values.equal(hand.scorer.score(BATCHES).chosen.values)
    prompts = [pair.prompt_ids for pair in PAIRS]
    assert plugin.policy.generate(prompts, 5, eos=7) == hand.scorer.generate(prompts, 5, eos=7)


def test_logits_that_are_made_in_parts_give_the_same(start, monkeypatch):
    plugin, hand = start(), ByHand()
    monkeypatch.setattr(token_logps, "__defaults__", (3 * VOCABULARY, *(token_logps.__defaults__ or ())[1:]))
    (loss, norm), *_ = train(plugin, 1)
    monkeypatch.undo()
    (expected_loss, expected_norm), *_ = hand.train(1)
    assert loss == pytest.approx(expected_loss, rel=1e-3)  # bfloat16 products of other shapes are rounded otherwise
    assert norm == pytest.approx(expected_norm, rel=1e-2)


@pytest.mark.parametrize("placement", ["all on the GPU", "all in the host's memory"])
def test_it_clips_what_it_reports_unclipped(start, placement):
    plugin, hand = start(max_grad_norm=0.01, **PLACEMENTS[placement]), ByHand()
    for (_, norm), (_, expected) in zip(train(plugin, 3), hand.train(3, max_grad_norm=0.01), strict=True):
        assert norm == pytest.approx(expected, rel=1e-3)
    for name, of in masters(plugin).items():
        assert torch.allclose(of, hand.masters[name], rtol=1e-5, atol=1e-6), name


def too_much(number: int, logps: PairLogps) -> LossOutput:
    output = likelihood(number, logps)
    return LossOutput(output.loss * (torch.inf if number == 1 else 1.0), output.terms)


def test_a_gradient_that_is_not_finite_updates_nothing_and_is_forgotten(start):
    plugin, other = start(), start()
    before = plugin.policy.digest()
    plugin.forward_backward(BATCHES, too_much)
    assert not math.isfinite(plugin.step(LR))
    assert plugin.policy.digest() == before
    assert train(plugin, 2) == train(other, 2)
    assert plugin.policy.digest() == other.policy.digest() != before


def test_an_overflow_of_fp16_is_skipped_and_lowers_the_scale(start):
    plugin, other = (start(precision=Precision.fp16_weights) for _ in range(2))
    plugin.forward_backward(BATCHES, too_much)
    assert plugin.step(LR) is None
    assert plugin.loss_scale.metrics() == {"overflows": 1.0, "loss_scale": 2.0**15}
    other.loss_scale.scale = 2.0**15
    assert train(plugin, 2) == train(other, 2)
    assert plugin.policy.digest() == other.policy.digest()


def test_fp16_trains_as_bf16_does(start):
    """The loss scale is divided out of norm and update: to the precision of bfloat16."""
    plugin, hand = start(precision=Precision.fp16_weights), ByHand()
    for (loss, norm), (expected_loss, expected_norm) in zip(train(plugin, 3), hand.train(3), strict=True):
        assert loss == pytest.approx(expected_loss, rel=2e-2)
        assert norm == pytest.approx(expected_norm, rel=2e-2)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_it_goes_on_to_the_last_bit(start, placement, tmp_path):
    plugin, again = (start(**PLACEMENTS[placement]) for _ in range(2))
    for one in (plugin, again):
        one.hold_reference(Builder(made, made))
    train(plugin, 2)
    plugin.models[Which.held].move_towards(plugin.policy, 1.0)
    assert plugin.models[Which.held].digest() == plugin.policy.digest()
    files = plugin.save(tmp_path, held=True)
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    again.load(tmp_path, held=True)
    assert [of.digest() for of in again.models.values()] == [of.digest() for of in plugin.models.values()]
    assert train(again, 2) == train(plugin, 2)
    assert again.policy.digest() == plugin.policy.digest()
    assert again.score(BATCHES, Which.held).chosen.values.equal(plugin.score(BATCHES, Which.held).chosen.values)


def test_the_held_model_moves_by_the_share_it_is_told(start):
    plugin = start()
    plugin.hold_reference(Builder(made, made))
    train(plugin, 1)
    before = {part.name: part.tensor.clone() for part in plugin.held.held()}
    plugin.held.move_towards(plugin.policy, 0.25)
    for part in plugin.held.held():
        current = parts(plugin)[part.name].tensor.bfloat16()
        assert torch.allclose(part.tensor, 0.75 * before[part.name] + 0.25 * current, rtol=1e-2, atol=1e-4)


@pytest.mark.versions
def test_the_weights_are_a_folder_that_transformers_loads_without_a_second_head(start, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    plugin = start()
    train(plugin, 1)
    plugin.save_weights(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    more = {"torch_dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **more)
    scorer = WholeModel(BuiltModel(loaded, lambda logits: logits), torch.device("cpu"), torch.float32)
    assert scorer.score(BATCHES).chosen.values.equal(plugin.score(BATCHES).chosen.values)


def test_frequencies_of_positions_are_not_rounded(start):
    expected = made().model.model.rotary_emb.inv_freq
    assert start().policy.model.model.rotary_emb.inv_freq.equal(expected)


def test_a_model_boosted_otherwise_is_refused_where_its_gradients_would_be_wrong(start):
    plugin = start()
    plugin.wrapper.enable_gradient_accumulation = False
    with pytest.raises(ConfigError, match="enable_gradient_accumulation=True"):
        plugin.adopt(plugin.wrapper, plugin.optimizer, lambda logits: logits, None)


def test_a_rank_has_of_a_parameter_what_its_range_of_the_chunk_has():
    # a chunk of 10 numbers on two ranks: 4 of one parameter, 5 of the next, a padding
    first, second = (2, 2), (5,)
    assert piece_in(0, 5, 0, first) == Piece.whole(first)
    assert piece_in(5, 10, 0, first).numel == 0
    assert piece_in(0, 5, 4, second) == replace(Piece.whole(second), start=0, stop=1)
    assert piece_in(5, 10, 4, second) == replace(Piece.whole(second), start=1, stop=5)


def test_greedy_continuations_end_with_eos_or_with_what_is_asked_for():
    def following(texts):  # one more than the last token
        asked.append([text.tolist() for text in texts])
        return [int(text[-1]) + 1 for text in texts]

    asked: list[list[list[int]]] = []
    assert greedy([torch.tensor([1, 2]), torch.tensor([4])], 3, 6, following) == [[3, 4, 5], [5]]
    assert asked == [[[1, 2], [4]], [[1, 2, 3], [4, 5]], [[1, 2, 3, 4]]]
    assert greedy([], 3, 6, following) == []


def test_what_is_computed_from_parameters_is_torchs_own_again(start):
    """ColossalAI's class gives for an in-place operation a copy."""
    from colossalai.tensor.colo_tensor import ColoTensor

    other = torch.ones(2).as_subclass(ColoTensor)
    other.add_(1)
    assert other.tolist() == [1, 1]
    ours = plain(other)
    ours.add_(1)
    assert ours.tolist() == [2, 2]
