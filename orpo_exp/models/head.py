"""From the output of a causal LM's head to its logits.

Logits are made for scored tokens only, past the model's own forward (see scoring.py). What an architecture does to them
behind its head must then be done here as well; a model that does something else is refused, not scored wrongly.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from orpo_exp.schema import Refused
from orpo_exp.scoring import captured_hidden
from orpo_exp.versions import dtype_name


def finish_logits(config: Any) -> Callable[[Tensor], Tensor]:
    """The function an architecture applies to its head's output, read from its Hugging Face configuration."""
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
    scale = getattr(config, "logit_scale", None)  # Cohere
    divisor = getattr(config, "logits_scaling", None)  # Granite

    def finish(logits: Tensor) -> Tensor:
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        return logits

    return finish


def check_architecture(make: Callable[[Any], Any], hf_config: Any) -> None:
    """Try a small model of the same architecture, two layers with large random weights; see `check_model`.

    make: makes a model of a configuration.
    """
    small = copy.deepcopy(hf_config)
    setattr(small, dtype_name(), torch.float32)
    small.pad_token_id = None
    sizes = {"num_hidden_layers": 2, "vocab_size": 32, "intermediate_size": 64}
    for name, size in sizes.items():
        if isinstance(given := getattr(small, name, None), int):
            setattr(small, name, min(size, given))
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[: small.num_hidden_layers]
    for name in ("initializer_range", "init_std"):
        if hasattr(small, name):
            setattr(small, name, 0.5)  # logits so large that what bounds them shows
    check_model(make(small), finish_logits(small))


@torch.no_grad()
def check_model(model: Any, finish: Callable[[Tensor], Tensor]) -> None:
    """Try a few tokens: the model must be causal, and `finish` must lead to the model's own logits.

    Raises Refused where it is not so.
    """
    name, was_training = type(model).__name__, model.training
    model.eval()
    head = model.get_output_embeddings()
    if head is None:
        raise Refused(f"{name} has no output embeddings; orpo_exp trains causal language models")
    ids = torch.arange(1, 5)[None]
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    other_end = model(input_ids=torch.cat([ids[:, :-1], ids[:, :1]], 1), use_cache=False).logits[0].float()
    with captured_hidden(head) as captured:
        model(input_ids=ids, use_cache=False)
    ours = finish(head(captured[0][0])).float()
    model.train(was_training)

    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if not torch.allclose(other_end[:-1], own[:-1], rtol=tolerance, atol=tolerance):
        raise Refused(f"{name} looks ahead: its logits depend on later tokens. orpo_exp trains causal language models")
    if not torch.allclose(ours, own, rtol=tolerance, atol=tolerance):
        raise Refused(
            f"{name} changes its logits behind its head in a way that orpo_exp does not know "
            f"(largest difference {float((ours - own).abs().max()):.3g}); add it to orpo_exp/models/head.py"
        )
