# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["trl==1.16.0", "transformers==5.23.0", "torch==2.13.0"]
# ///
"""The losses with a reference model as TRL's released DPOTrainer computes them, on hand-written log-probabilities.

    uv run benchmarks/trl_dpo_losses.py           # a table
    uv run benchmarks/trl_dpo_losses.py --json    # batch, losses and gradients: tests/losses/golden_dpo.json

The model is a stub that hands TRL the log-probabilities themselves, in float64, in place of those of a network, and
the trainer one that holds settings only; `DPOTrainer._compute_loss` is the released code, none of it repeated here.
What TRL keeps in float32 stays so: everything under the alpha divergence, and EXO's logarithms of its label.
"""

import argparse
import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer

# Answers from one token to seven; log-ratios of both signs; no two margins alike, so that sorting has one outcome.
POLICY = {
    "chosen": [[-0.1, -0.5, -2.0], [-1.5, -0.3], [-0.7], [-2.5, -0.4, -1.1, -0.2, -3.0, -0.6, -0.9]],
    "rejected": [[-1.0, -0.2, -3.0, -0.7], [-0.4, -0.6, -0.8, -0.1, -0.9], [-1.3, -0.05], [-3.7, -1.25, -0.35]],
}
REFERENCE = {
    "chosen": [[-0.4, -0.9, -1.8], [-1.1, -0.45], [-1.6], [-2.0, -0.5, -1.9, -0.3, -2.6, -0.8, -0.4]],
    "rejected": [[-0.8, -0.3, -2.2, -0.9], [-0.6, -0.5, -1.4, -0.2, -0.7], [-1.0, -0.15], [-2.9, -1.5, -0.25]],
}
# log sum_v p(v)^2 at the policy's tokens, for WPO
LOG_SQUARED = {
    "chosen": [[-0.2, -0.7, -1.6], [-1.2, -0.4], [-0.9], [-1.8, -0.6, -1.0, -0.35, -2.2, -0.75, -1.05]],
    "rejected": [[-1.1, -0.3, -2.4, -0.8], [-0.5, -0.65, -0.95, -0.2, -1.0], [-1.5, -0.1], [-2.7, -1.0, -0.45]],
}
PROMPT = 2  # tokens before each answer

TRL_NAME = {"dpo": "sigmoid", "dpo_hinge": "hinge", "dpo_robust": "robust", "dpo_norm": "sigmoid_norm"}
OF_THE_DIFFERENCE = ("dpo", "dpo_hinge", "dpo_robust", "dpo_norm", "ipo", "exo_pair", "discopop")
OF_EACH_ANSWER = ("nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down")
OF_THE_BATCH = ("aot", "aot_unpaired")
DEFAULTS: dict[str, dict[str, float]] = {"dpo_robust": {"label_smoothing": 0.1}, "exo_pair": {"label_smoothing": 1e-3}}


def cases() -> list[tuple[str, dict[str, Any], int]]:
    """Every loss of this project, the settings to try it with, and how many of the pairs to give it."""
    every = (*OF_THE_DIFFERENCE, *OF_EACH_ANSWER, *OF_THE_BATCH)
    found: list[tuple[str, dict[str, Any], int]] = []
    for loss in every:
        own = DEFAULTS.get(loss, {})
        found += [(loss, own, pairs) for pairs in (4, 1)]
        found += [(loss, own | more, 4) for more in ({"beta": 0.7}, {"ld_alpha": 0.3}, {"ld_alpha": 0.0})]
        if (
            loss in DEFAULTS or loss in OF_THE_BATCH
        ):  # TRL's sigmoid has no label smoothing; AOT on one pair is the same
            found += [(loss, {"label_smoothing": 0.2}, pairs) for pairs in (4, 1)]
        if loss not in OF_THE_BATCH:
            found += [(loss, own | {"wpo": True}, 4), (loss, own | {"wpo": True, "ld_alpha": 0.5}, 4)]
        if loss in OF_THE_DIFFERENCE:
            found += [(loss, own | {"f_divergence": kind}, 4) for kind in ("forward_kl", "js", "alpha")]
            found += [(loss, own | {"f_divergence": "alpha", "alpha_divergence": 0.9, "beta": 0.7, "ld_alpha": 0.5}, 4)]
        found += [(loss, own | {"nll_weight": 0.25}, 4)]
    found += [("dpo", {"f_divergence": "alpha", "alpha_divergence": a}, 4) for a in (-0.5, 0.0, 1.0, 2.0)]
    found += [("discopop", {"tau": tau, "beta": 0.7}, 4) for tau in (0.5, 1.0)]
    return found


def padded(answers: dict[str, list[list[float]]], pairs: int) -> Tensor:
    """(2 pairs, longest - 1) float64: chosen above rejected, 0 where nothing is scored, as TRL's head gives them."""
    rows = answers["chosen"][:pairs] + answers["rejected"][:pairs]
    width = PROMPT - 1 + max(map(len, rows))
    whole = [[0.0] * (PROMPT - 1) + row + [0.0] * (width - PROMPT + 1 - len(row)) for row in rows]
    return torch.tensor(whole, dtype=torch.float64)


class Logps:
    """A causal language model to TRL: whatever the input, these are the log-probabilities."""

    training = True
    is_gradient_checkpointing = False

    def __init__(self, log_probs: Tensor, log_squared: Tensor) -> None:
        self.log_probs, self.log_squared = log_probs, log_squared

    def __call__(self, **inputs: object) -> SimpleNamespace:
        """The output of TRL's fused head."""
        nothing = torch.zeros_like(self.log_probs)  # only logged
        return SimpleNamespace(
            log_probs=self.log_probs,
            log_sum_sq_probs=self.log_squared,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
        )


def trl_trainer(loss: str, options: dict[str, Any], model: Logps, reference: Logps) -> SimpleNamespace:
    """What `DPOTrainer._compute_loss` reads of its trainer, under the names and defaults of DPOConfig."""
    same = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    kinds = {"js": "js_divergence", "alpha": "alpha_divergence"}
    divergence = options.get("f_divergence", "reverse_kl")
    nll = options.get("nll_weight", 0.0)
    return SimpleNamespace(
        accelerator=same,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=options.get("tau", 0.05)),
        model=model,
        ref_model=reference,
        precompute_ref_logps=False,
        aux_loss_enabled=False,
        loss_types=[TRL_NAME.get(loss, loss), *(["sft"] if nll else [])],
        loss_weights=[1.0, *([nll] if nll else [])],
        beta=options.get("beta", 0.1),
        label_smoothing=options.get("label_smoothing", 0.0),
        ld_alpha=options.get("ld_alpha"),
        use_weighting=options.get("wpo", False),
        f_divergence_type=kinds.get(divergence, divergence),
        f_alpha_divergence_coef=options.get("alpha_divergence", 0.5),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )


def loss_and_gradients(loss: str, options: dict[str, Any], pairs: int) -> dict[str, Any]:
    """TRL's loss and its gradient with respect to every token's log-probability, answer by answer.

    The gradient is None where TRL cannot compute it.
    """
    # TRL's table of clamps for the alpha divergence knows no float64.
    dtype = torch.float32 if options.get("f_divergence") == "alpha" else torch.float64
    log_probs = padded(POLICY, pairs).to(dtype).requires_grad_()
    model = Logps(log_probs, padded(LOG_SQUARED, pairs).to(dtype))
    reference = Logps(padded(REFERENCE, pairs).to(dtype), torch.zeros_like(log_probs))
    lengths = [len(row) for side in ("chosen", "rejected") for row in POLICY[side][:pairs]]
    width = log_probs.size(1) + 1
    place = torch.arange(width).expand(2 * pairs, width)
    end = PROMPT + torch.tensor(lengths)[:, None]
    inputs = {
        "input_ids": torch.ones_like(place),
        "attention_mask": (place < end).long(),
        "completion_mask": ((place >= PROMPT) & (place < end)).long(),
    }
    trainer = trl_trainer(loss, options, model, reference)
    value = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    try:
        value.backward()
    except RuntimeError:  # hinge with WPO: TRL multiplies in place what relu needs for its gradient
        return {"value": value.item(), "chosen": None, "rejected": None}
    assert log_probs.grad is not None
    gradients = zip(log_probs.grad.tolist(), lengths, strict=True)
    rows = [[float(f"{g:.12g}") for g in row[PROMPT - 1 : PROMPT - 1 + n]] for row, n in gradients]
    return {"value": value.item(), "chosen": rows[:pairs], "rejected": rows[pairs:]}


def main() -> None:
    """Print the table, or everything as JSON."""
    parser = argparse.ArgumentParser(
        description="TRL's losses with a reference model on hand-written log-probabilities."
    )
    parser.add_argument("--json", action="store_true", help="print the batch, every loss and every gradient as JSON")
    as_json = parser.parse_args().json
    results = []
    for loss, options, pairs in cases():
        found = loss_and_gradients(loss, options, pairs)
        results.append({"loss": loss, "options": options, "pairs": pairs, **found})
    if as_json:
        batch = {"policy": POLICY, "reference": REFERENCE, "log_squared": LOG_SQUARED}
        lines = ",\n    ".join(json.dumps(result) for result in results)
        head = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in batch.items())
        print(f'{{\n  {head},\n  "cases": [\n    {lines}\n  ]\n}}')
        return
    for result in results:
        options = " ".join(f"{key}={value}" for key, value in result["options"].items())
        print(f"{result['loss']:<14}{result['pairs']:>2} pairs {result['value']:>16.10f}  {options}")


if __name__ == "__main__":
    main()
