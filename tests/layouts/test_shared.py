"""Rows that hold more than one text: what each architecture computes of them, against each text in a row of its own."""

import pytest
import torch
from support import pair, random_pairs
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from orpo_exp.layouts import Layout
from orpo_exp.layouts.auto import Auto
from orpo_exp.layouts.padded import Padded
from orpo_exp.layouts.shared import Packed, SharedPrefix
from orpo_exp.models.attention import Attention
from orpo_exp.models.recompute import Keeps, recompute
from orpo_exp.models.segments import Attend, one_text_a_row, take_segments
from orpo_exp.schema import ConfigError
from orpo_exp.scoring import captured_hidden, pair_logps
from orpo_exp.types import Need, PairLogps, Segment, TokenizedPair

VOCABULARY = 40
LAYOUTS: dict[str, Layout] = {
    "shared_prefix": SharedPrefix(SharedPrefix.Config()),
    "packed": Packed(Packed.Config()),
    "packed, prompts repeated": Packed(Packed.Config(share_prefix=False)),
}
ALL = frozenset(Need)
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "initializer_range": 0.2, "max_position_embeddings": 64}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
MODELS = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 64},
    "mistral, a window shorter than the rows": {**GROUPED, "sliding_window": 7},
    "qwen2": GROUPED,
    "qwen2, a window": {**GROUPED, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0},
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma2, uncapped": {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 7,
                         "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
             "initializer_range": 0.2},
    "phi3": {**GROUPED, "pad_token_id": 0},
    "gpt_neox": SIZES,
}  # fmt: skip


def model_of(name: str) -> torch.nn.Module:
    kind = name.partition(",")[0]
    config = CONFIG_MAPPING[kind](**MODELS[name], attn_implementation="sdpa")
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    assert one_text_a_row(model.config, Attention.sdpa) is None
    take_segments(model, Attend)
    return model


def pairs_of(count: int) -> list[TokenizedPair]:
    """Uneven ones, each with mismatched answers; the first has answers of one token, of which a row has nothing."""
    pairs = [pair(0, [3, 4, 5], [6], [7]), *random_pairs(count, VOCABULARY)[1:]]
    following = [*pairs[1:], pairs[0]]
    return [
        TokenizedPair(p.row, p.prompt_ids, p.chosen_ids, p.rejected_ids, (q.chosen_ids, q.rejected_ids))
        for p, q in zip(pairs, following, strict=True)
    ]


def scored(model, layout: Layout, pairs: list[TokenizedPair]) -> tuple[PairLogps, dict[str, Tensor]]:
    """Log-probabilities by span, and the gradient of a sum of them, each with a weight of its own."""
    model.zero_grad()
    batch = layout.collate(pairs, ALL)
    head = model.get_output_embeddings()
    with captured_hidden(head) as hidden:
        model(**batch.to_model(torch.device("cpu")), use_cache=False)
    logps = pair_logps(hidden[0], head, batch.score)
    weights = torch.Generator().manual_seed(1)
    sum(
        (of.values * torch.rand(of.values.shape, generator=weights)).sum() for of in logps.by_span().values()
    ).backward()
    return logps, {name: p.grad.clone() for name, p in model.named_parameters()}


def alone(model, prompt: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: a text by itself through the model as transformers has it; prompt and answer."""
    ids = torch.cat([prompt, answer]).long()
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    logps = logits.double().log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return logps[: len(prompt) - 1], logps[len(prompt) - 1 :]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_token_is_scored_as_in_a_text_by_itself(name, layout):
    model, pairs = model_of(name), pairs_of(7)
    logps, _ = scored(model, LAYOUTS[layout], pairs)
    for i, p in enumerate(pairs):
        answers = (p.chosen_ids, p.rejected_ids, *p.mismatched)
        exact = [alone(model, p.prompt_ids, answer) for answer in answers]
        ours = (logps.chosen, logps.rejected, logps.mismatched_chosen, logps.mismatched_rejected)
        for of, (prompt, answer) in zip(ours, exact, strict=True):
            torch.testing.assert_close(of.tokens()[i].double(), answer, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(logps.prompt.tokens()[i].double(), prompt, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_padded_rows(name, layout):
    model, pairs = model_of(name), pairs_of(7)
    _, exact = scored(model, Padded(Padded.Config()), pairs)
    _, ours = scored(model, LAYOUTS[layout], pairs)
    for of, gradient in exact.items():
        assert float((ours[of] - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max()), of


@pytest.mark.parametrize("keeps", Keeps)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_recomputed_attends_as_it_did_whatever_else_is_under_way(layout, keeps):
    """As in a pipeline: a second batch goes forward before the first goes backward."""
    model, pairs = model_of("llama"), pairs_of(8)
    _, first = scored(model, LAYOUTS[layout], pairs[:4])
    _, second = scored(model, LAYOUTS[layout], pairs[4:])
    model.zero_grad()
    model.train()
    recompute(model, keeps)
    losses = []
    for part in (pairs[:4], pairs[4:]):
        batch = LAYOUTS[layout].collate(part, ALL)
        with captured_hidden(model.lm_head) as hidden:
            model(**batch.to_model(torch.device("cpu")), use_cache=False)
        logps = pair_logps(hidden[0], model.lm_head, batch.score).by_span().values()
        weights = torch.Generator().manual_seed(1)
        losses.append(sum((of.values * torch.rand(of.values.shape, generator=weights)).sum() for of in logps))
    for loss in losses:
        loss.backward()
    for name, parameter in model.named_parameters():
        both = first[name] + second[name]
        assert float((parameter.grad - both).abs().max()) <= 1e-5 * float(both.abs().max()), name


def test_other_calls_of_the_model_are_as_before():
    model = model_of("llama")
    ids = torch.randint(VOCABULARY, (2, 9))
    before = model(input_ids=ids).logits
    scored(model, LAYOUTS["packed"], pairs_of(3))
    assert torch.equal(model(input_ids=ids).logits, before)
    with pytest.raises(IndexError):  # a token that is not in the vocabulary, in the middle of a pass
        scored(model, LAYOUTS["packed"], [pair(0, [1, VOCABULARY], [2, 3], [4, 5])])
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_without_pairs_runs_and_has_a_zero_gradient(layout):
    logps, gradients = scored(model_of("llama"), LAYOUTS[layout], [])
    assert all(len(of.values) == 0 for of in logps.by_span().values())
    assert all(gradient.abs().max() == 0 for gradient in gradients.values())


def test_a_shared_row_is_prompt_chosen_rejected_without_their_last_tokens():
    batch = LAYOUTS["shared_prefix"].collate([pair(0, [1, 2, 3], [4, 5], [6, 7, 8])], frozenset())
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3, 4, 6, 7]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 3, 4]]
    assert batch.segments.rows == ((Segment(3, (1, 2)),),)
    assert batch.score.position.tolist() == [2, 3, 2, 4, 5]
    assert batch.score.target.tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", [*LAYOUTS, "padded"])
def test_what_is_computed_is_what_is_said(name):
    layout = LAYOUTS.get(name, Padded(Padded.Config()))
    pairs = random_pairs(6, VOCABULARY)
    assert layout.collate(pairs, frozenset()).inputs["input_ids"].numel() == layout.computed(pairs)


def test_auto_shares_where_it_saves_tokens_and_the_model_can():
    auto = Auto(Auto.Config())
    long, short = pair(0, [1] * 20, [2] * 9, [3] * 9), pair(0, [1], [2] * 50, [3] * 50)
    chosen, why = auto.settled([long], None)
    assert (type(chosen), why) == (Packed, "which computes 36% fewer tokens of these pairs than padded")
    chosen, why = auto.settled([short], None)
    assert (type(chosen), why) == (Padded, "for the others compute 1% fewer tokens of these pairs")
    chosen, why = auto.settled([long], "it counts positions by itself")
    assert (type(chosen), why) == (Padded, "for a row can hold one text only: it counts positions by itself")
    with pytest.raises(
        ConfigError, match=r"layout: given 'packed'; allowed: auto or padded.*it is so. Choose layout=auto"
    ):
        LAYOUTS["packed"].settled([long], "it is so")


@pytest.mark.parametrize(
    ("kind", "attention", "more", "why"),
    [
        ("gemma2", Attention.eager, {}, "it attends by model.attention=eager"),
        ("gemma2", Attention.flash_attention_2, {}, "it caps attention's scores"),
        ("bloom", Attention.sdpa, {}, "its attention cannot be replaced"),
        ("llama", Attention.sdpa, {}, None),
    ],
)
def test_models_whose_rows_hold_one_text_are_known(kind, attention, more, why):
    assert one_text_a_row(CONFIG_MAPPING[kind](**more), attention) == why
