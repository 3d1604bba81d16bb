# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["trl==1.16.0", "transformers==5.23.0", "torch==2.13.0"]
# ///
"""CPO's family and KTO as TRL's released trainers compute them, from hand-written log-probabilities of single tokens.

    uv run benchmarks/trl_cpo_kto_losses.py > tests/losses/golden_trl_cpo_kto.json

Prints the batch, and for each case the loss of this project, its configuration, and TRL's value and gradient by every
token's log-probability. What runs is TRL's own masking, summing, loss and reduction; only the model is a stand-in that
answers with the written log-probabilities in float64.
"""

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

# Mismatched answers are those of the next pair, and so have their lengths. The first pair's alone have a negative KL.
POLICY = {
    "chosen": [[-0.1, -0.5, -2.0], [-1.5, -0.3], [-0.7, -0.05, -3.2, -0.9, -1.1]],
    "rejected": [[-1.0, -0.2, -3.0, -0.7], [-0.4, -0.6, -0.8, -0.1, -0.9], [-6.5]],
    "mismatched_chosen": [[-2.5, -0.8], [-1.7, -0.6, -3.9, -1.2, -2.2], [-0.8, -1.4, -2.9]],
    "mismatched_rejected": [[-0.9, -1.6, -1.8, -0.3, -2.0], [-7.1], [-1.9, -0.7, -4.4, -1.3]],
}
REFERENCE = {
    "chosen": [[-0.3, -0.9, -1.6], [-1.1, -0.2], [-0.9, -0.15, -2.7, -1.4, -1.3]],
    "rejected": [[-1.2, -0.1, -2.5, -0.6], [-0.7, -0.5, -1.3, -0.4, -0.6], [-5.2]],
    "mismatched_chosen": [[-2.2, -0.7], [-2.3, -1.1, -3.8, -1.9, -2.6], [-1.5, -1.9, -3.3]],
    "mismatched_rejected": [[-0.7, -1.5, -1.9, -0.2, -1.6], [-8.4], [-1.6, -1.2, -4.9, -1.8]],
}
PROMPT_LENGTHS = (2, 1, 3)
ANSWERS = ("chosen", "rejected")

# this project's loss and configuration; what TRL calls the same
CPO_CASES: list[tuple[str, dict[str, float], dict[str, Any]]] = [
    ("cpo", {"beta": 0.1, "alpha": 1.0}, {"loss_type": "sigmoid"}),
    ("cpo", {"beta": 0.3, "alpha": 0.0, "label_smoothing": 0.2}, {"loss_type": "sigmoid"}),
    ("slic", {"beta": 0.1, "alpha": 1.0}, {"loss_type": "hinge"}),
    ("slic", {"beta": 0.5, "alpha": 0.3}, {"loss_type": "hinge"}),
    ("simpo", {"beta": 2.0, "gamma": 0.5}, {"loss_type": "simpo"}),
    ("simpo", {"beta": 2.5, "gamma": 1.2, "label_smoothing": 0.1}, {"loss_type": "simpo"}),
    ("cpo_simpo", {"beta": 2.0, "gamma": 0.5, "alpha": 0.7}, {"loss_type": "simpo"}),
    ("alphapo", {"beta": 2.0, "gamma": 0.5, "alpha": 0.25}, {"loss_type": "simpo"}),
    ("alphapo", {"beta": 1.5, "gamma": 0.2, "alpha": -0.5, "label_smoothing": 0.1}, {"loss_type": "simpo"}),
    ("alphapo", {"beta": 2.0, "gamma": 0.5, "alpha": 1.0, "nll_weight": 0.4}, {"loss_type": "simpo"}),
]
KTO_CASES: list[dict[str, float]] = [
    {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.6},
]


def alone(trainer_class: type, **attributes: Any) -> Any:
    """A trainer with nothing but these attributes and the means to gather over one process."""
    trainer = object.__new__(trainer_class)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x)
    vars(trainer).update(accelerator=accelerator, aux_loss_enabled=False, **attributes)
    return trainer


class TwoTokenModel:
    """A causal LM over two tokens: its logits give token 0, the target everywhere, the written log-probability.

    The other token gets the rest, log(1 - p), so the softmax is normalised whatever the values are, and the gradient by
    a log-probability is not disturbed by it.
    """

    def __init__(self, logps: list[Tensor], prompts: list[int]) -> None:
        self.logps, self.prompts = logps, prompts

    def __call__(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Logits of the rows in the order of `logps`; a position predicts the token after it."""
        p = torch.full(input_ids.shape, -1.0, dtype=torch.float64)
        for row, (logps, prompt) in enumerate(zip(self.logps, self.prompts, strict=True)):
            p[row, prompt - 1 : prompt - 1 + len(logps)] = logps
        return SimpleNamespace(logits=torch.stack([p, torch.log(-torch.expm1(p))], dim=-1))


def cpo_case(loss: str, config: dict[str, float], trl: dict[str, Any], pairs: range) -> dict[str, Any]:
    """TRL's CPO trainer on these pairs."""
    nll_weight = config.get("nll_weight", 0.0) if loss == "alphapo" else config.get("alpha", 0.0)
    attributes = {"beta": config["beta"], "label_smoothing": config.get("label_smoothing", 0.0), **trl}
    attributes |= {"cpo_alpha": nll_weight, "alpha": config["alpha"] if loss == "alphapo" else 0.0}
    attributes |= {"simpo_gamma": config.get("gamma"), "is_encoder_decoder": False, "pad_token_id": 0}

    leaves = {s: [torch.tensor(POLICY[s][i], dtype=torch.float64).requires_grad_() for i in pairs] for s in ANSWERS}
    prompts = [PROMPT_LENGTHS[i] for i in pairs]
    batch: dict[str, Tensor] = {}
    for side, rows in leaves.items():
        labels = [torch.tensor([-100] * n + [0] * len(row)) for n, row in zip(prompts, rows, strict=True)]
        batch[f"{side}_labels"] = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        batch[f"{side}_input_ids"] = torch.zeros_like(batch[f"{side}_labels"])
        batch[f"{side}_attention_mask"] = torch.ones_like(batch[f"{side}_labels"])
    model = TwoTokenModel(leaves["chosen"] + leaves["rejected"], prompts * 2)

    value, metrics = alone(CPOTrainer, **attributes).get_batch_loss_metrics(model, batch)
    value.backward()
    reported = {name: metrics[name] for name in ("rewards/chosen", "rewards/rejected")}
    if nll_weight:  # TRL leaves it out otherwise
        reported["nll_loss"] = metrics["nll_loss"]
    return {"loss": loss, "config": config, "pairs": len(pairs), "value": value.item(), "metrics": reported} | {
        "gradient": {side: torch.cat([row.grad for row in rows]).tolist() for side, rows in leaves.items()}
    }


class TableModel(nn.Module):
    """A causal LM with a fused head whose token n > 0 has the log-probability table[n - 1], wherever it stands."""

    is_gradient_checkpointing = False

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        """log_probs (rows, columns - 1), 0 where there is no label, as TRL's fused head returns them."""
        padded = torch.cat([self.table.new_zeros(1), self.table])
        logps = torch.where(labels == -100, 0.0, padded[input_ids])[:, 1:]
        return SimpleNamespace(log_probs=logps, entropy=torch.zeros_like(logps), mean_logits=torch.zeros_like(logps))


def kto_case(config: dict[str, float], pairs: range) -> dict[str, Any]:
    """TRL's KTO trainer on these pairs, each as two examples."""
    ids: dict[str, list[list[int]]] = {}
    count = 0
    for span, rows in POLICY.items():
        ids[span] = []
        for i in pairs:
            ids[span].append(list(range(count + 1, count + 1 + len(rows[i]))))
            count += len(rows[i])
    table, reference = (
        torch.tensor([v for rows in side.values() for i in pairs for v in rows[i]], dtype=torch.float64)
        for side in (POLICY, REFERENCE)
    )
    table.requires_grad_()
    examples = [
        {
            "prompt_ids": [0] * PROMPT_LENGTHS[i],
            "completion_ids": ids[side][place],
            "KL_completion_ids": ids[f"mismatched_{side}"][place],
            "label": side == "chosen",
        }
        for place, i in enumerate(pairs)
        for side in ANSWERS
    ]
    trainer = alone(
        KTOTrainer,
        **config,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=False,
        model=TableModel(table),
        ref_model=TableModel(reference),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = DataCollatorForUnpairedPreference(pad_token_id=0)(examples)
    value = trainer.compute_loss(trainer.model, batch)
    value.backward()
    gradient = {s: [table.grad[n - 1].item() for row in ids[s] for n in row] for s in POLICY}
    reported = {name: trainer._metrics["train"][name][0] for name in ("kl", "rewards/chosen", "rewards/rejected")}
    return {"loss": "kto", "config": config, "pairs": len(pairs), "value": value.item(), "metrics": reported} | {
        "gradient": gradient
    }


def ten_digits(value: Any) -> Any:
    """Every number in it, rounded."""
    if isinstance(value, dict):
        return {key: ten_digits(v) for key, v in value.items()}
    if isinstance(value, list):
        return [ten_digits(v) for v in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


def main() -> None:
    """Compute every case for all pairs and for the first alone, and print them."""
    sizes = (range(len(PROMPT_LENGTHS)), range(1))
    cases = [cpo_case(*case, pairs) for case in CPO_CASES for pairs in sizes]
    cases += [kto_case(config, pairs) for config in KTO_CASES for pairs in sizes]
    lines = ",\n".join(json.dumps(ten_digits(case)) for case in cases)
    print(f'{{"policy": {json.dumps(POLICY)},\n"reference": {json.dumps(REFERENCE)},\n"cases": [\n{lines}\n]}}')


if __name__ == "__main__":
    main()
