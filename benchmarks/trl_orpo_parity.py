# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["trl==1.16.0", "transformers==5.23.0", "torch==2.13.0"]
# ///
"""First step of ORPO on the same weights and tokens: TRL's released trainer, orpo_exp, and float64 as the arbiter.

    uv run benchmarks/trl_orpo_parity.py              # a table; exit code 1 where orpo_exp is off TRL by more than 1e-5
    uv run benchmarks/trl_orpo_parity.py --trl-only   # TRL's and the float64 values as JSON, golden values for tests

The script's environment is its own and holds TRL; orpo_exp runs through its command line in the project's environment.
Weights come from integer arithmetic and the tokens are bytes, so both can be made again anywhere, bit for bit.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

ROOT = Path(__file__).resolve().parent.parent
LAM = 0.1
TOLERANCE = 1e-5
QUANTITIES = ("loss", "nll_loss", "odds_ratio_loss", "log_odds_ratio", "grad_norm")
LAYERS, HEADS, HEAD_SIZE = 2, 4, 8
PAD, EOS = 256, 258
CONFIG: dict[str, Any] = {  # in the spelling of transformers 4, which version 5 reads too
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": HEADS * HEAD_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "torch_dtype": "float32",
}

# Lengths are uneven, down to answers of one byte, and the log odds ratios lie between -5.3 and 0.4.
PAIRS = [
    ("What is the capital of France?", " Paris.", " I would rather not say; try Lyon."),
    ("2 + 2 =", " 4", " 5"),
    ("Draw a line.\n", "A line is long and thin.", "------------------------"),
    ("Repeat after me: hello hello hello. Go:", " hello hello hello", " goodbye"),
    ("User: thanks for your help!\nAssistant:", " You are welcome.", " Whatever. It was not for you, was it?"),
    ("Scream", "!", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaargh"),
]


def fill_weights(model: LlamaForCausalLM) -> None:
    """Fill the parameters, in the order of their names, with w(n, i) for parameter n = 0, 1, ... and its flat index i.

    u = ((7919 i^2 + 104729 n i + 1299709 n) mod 10007) / 10007, in integers up to the division, and x = 2u - 1; then
    w = 1 + x/5 for norms, x for the embeddings, x/4 for the rest, rounded to float32. Squares, because a formula linear
    in i, or its sine, makes matrices of low rank. At last half the embeddings are added to the head, which inclines the
    model to repeat the last byte: some answers become probable, without which odds and probabilities hardly differ.
    """
    embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
    with torch.no_grad():
        for n, (name, parameter) in enumerate(sorted(model.named_parameters())):
            i = torch.arange(parameter.numel(), dtype=torch.int64)
            u = ((7919 * i * i + 104729 * n * i + 1299709 * n) % 10007).double() / 10007
            x = (2 * u - 1).view_as(parameter)
            parameter.copy_(1 + x / 5 if "norm" in name else x if parameter is embeddings else x / 4)
        head += embeddings / 2


def byte_tokenizer() -> Tokenizer:
    """Ids 0..255 are the bytes themselves, then <pad>, <bos> (nobody's BOS) and <eos>; nothing is ever merged."""
    alphabet = bytes_to_unicode()  # byte -> the character that the ByteLevel pre-tokenizer writes for it
    tokenizer = Tokenizer(models.BPE(vocab={alphabet[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<pad>", "<bos>", "<eos>")])
    return tokenizer


def write_inputs(folder: Path) -> tuple[Path, Path]:
    """Write a model folder that transformers 4 and 5 load, and the pairs; returns both paths."""
    model_path, pairs_path = folder / "model", folder / "pairs.jsonl"
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    fill_weights(model)
    model.save_pretrained(model_path)
    # By hand: version 5 writes names for the rotary settings and the tokenizer's class that version 4 does not know.
    (model_path / "config.json").write_text(json.dumps(CONFIG))
    byte_tokenizer().save(str(model_path / "tokenizer.json"))
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
    (model_path / "tokenizer_config.json").write_text(json.dumps(tokens))
    pairs_path.write_text("".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in PAIRS))
    return model_path, pairs_path


def trl_step(model_path: Path, pairs_path: Path, scratch: Path) -> dict[str, float]:
    """What TRL's trainer logs at its first step, under this project's names."""
    from datasets import load_dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    run = {"output_dir": str(scratch / "trl"), "use_cpu": True, "save_strategy": "no", "report_to": "none"}
    step = {"per_device_train_batch_size": len(PAIRS), "max_steps": 1, "logging_steps": 1, "optim": "sgd"}
    trainer = ORPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        args=ORPOConfig(beta=LAM, max_length=512, bf16=False, **run, **step),  # bf16 is its default, on a CPU too
        train_dataset=load_dataset("json", data_files=str(pairs_path), split="train", cache_dir=str(scratch / "cache")),
        processing_class=AutoTokenizer.from_pretrained(model_path),
    )
    trainer.train()
    logged = trainer.state.log_history[0]  # the gradient norm in it is the one before clipping
    # TRL's log_odds_ratio is the mean of logsigmoid(log odds ratio), its log_odds_chosen that of the log odds ratio.
    renamed = {"odds_ratio_loss": -logged["log_odds_ratio"], "log_odds_ratio": logged["log_odds_chosen"]}
    return {name: (logged | renamed)[name] for name in QUANTITIES}


def token_logps(weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Log-probabilities of ids[1:] under the Llama of CONFIG, in the weights' precision.

    Written out because Hugging Face's norms and rotary tables stay in float32 after `model.double()`.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]).rsqrt() * weights[f"{name}.weight"]

    def rotate(x: Tensor) -> Tensor:
        speeds = CONFIG["rope_theta"] ** -(torch.arange(0, HEAD_SIZE, 2, dtype=x.dtype) / HEAD_SIZE)
        angles = torch.outer(torch.arange(len(ids), dtype=x.dtype), speeds)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

    x = weights["model.embed_tokens.weight"][ids]
    for at in (f"model.layers.{layer}" for layer in range(LAYERS)):
        h = norm(x, f"{at}.input_layernorm")
        q, k, v = (linear(h, f"{at}.self_attn.{p}_proj").unflatten(-1, (-1, HEAD_SIZE)).transpose(0, 1) for p in "qkv")
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + linear(mixed.transpose(0, 1).flatten(1), f"{at}.self_attn.o_proj")
        h = norm(x, f"{at}.post_attention_layernorm")
        x = x + linear(F.silu(linear(h, f"{at}.mlp.gate_proj")) * linear(h, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")
    logits = linear(norm(x, "model.norm"), "lm_head")
    return logits[:-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def float64_step(model_path: Path) -> dict[str, float]:
    """The same quantities from their definition: one sequence at a time, no padding, bytes taken from the text."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    nll, log_odds_ratios = [], []
    for prompt, *answers in PAIRS:
        chosen, rejected = (token_logps(weights, [*(prompt + answer).encode(), EOS]) for answer in answers)
        nll.append(-chosen)  # prompt and answer; nothing predicts the first token
        means = (logps[len(prompt.encode()) - 1 :].mean() for logps in (chosen, rejected))
        odds_chosen, odds_rejected = (mean - torch.log(-torch.expm1(mean)) for mean in means)
        log_odds_ratios.append(odds_chosen - odds_rejected)
    nll_loss, log_odds_ratio = torch.cat(nll).mean(), torch.stack(log_odds_ratios)
    odds_ratio_loss = -F.logsigmoid(log_odds_ratio).mean()
    loss = nll_loss + LAM * odds_ratio_loss
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(weights.values()))])
    values = (loss, nll_loss, odds_ratio_loss, log_odds_ratio.mean(), gradient.norm())
    return {name: value.item() for name, value in zip(QUANTITIES, values, strict=True)}


def orpo_exp_step(model_path: Path, pairs_path: Path, scratch: Path) -> dict[str, float]:
    """What orpo_exp writes for its first step, run from the command line in the project's environment."""
    command = ["uv", "run", "--project", str(ROOT), "python", "-m", "orpo_exp", "+experiment=orpo"]
    command += ["data=json", f"data.path={pairs_path}", f"data.eval_path={pairs_path}", f"hydra.run.dir={scratch}/run"]
    command += ["model=hf", f"model.path={model_path}", f"loss.lam={LAM}", "loss.nll=prompt_and_answer"]
    command += ["optimizer=sgd", "train.max_steps=1", "train.max_grad_norm=null"]
    command += [f"train.global_batch_size={len(PAIRS)}", f"train.micro_batch_size={len(PAIRS)}", "train.log_every=1"]
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}  # it names this script's environment
    subprocess.run(command, cwd=scratch, env=environment, stdout=sys.stderr, check=True)
    rows = map(json.loads, (scratch / "run" / "metrics.jsonl").read_text().splitlines())
    return next({name: row[name] for name in QUANTITIES} for row in rows if row["split"] == "train")


def relative(values: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    """Each quantity's distance from the reference, in units of the reference."""
    return {name: abs(values[name] - wanted) / abs(wanted) for name, wanted in reference.items()}


def main() -> int:
    """Run the sides that were asked for and report; returns the exit code."""
    parser = argparse.ArgumentParser(description="The first step of ORPO: TRL 1.16 against orpo_exp.")
    parser.add_argument("--trl-only", action="store_true", help="print TRL's and the float64 values as JSON, and stop")
    trl_only = parser.parse_args().trl_only
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
        scratch = Path(folder)
        inputs = write_inputs(scratch)
        trl, exact = trl_step(*inputs, scratch), float64_step(inputs[0])
        ours = {} if trl_only else orpo_exp_step(*inputs, scratch)
    if trl_only:
        sides = {"trl": trl, "float64": exact, "relative_difference": relative(trl, exact)}
        ten_digits = {side: {k: float(f"{v:.10g}") for k, v in row.items()} for side, row in sides.items()}
        print(json.dumps(ten_digits, indent=2))
        return 0
    off, exact_off = relative(ours, trl), relative(ours, exact)
    print(f"{'quantity':<16}{'TRL':>14}{'orpo_exp':>14}{'relative':>10}   (orpo_exp to float64)")
    for name in QUANTITIES:
        print(f"{name:<16}{trl[name]:14.8f}{ours[name]:14.8f}{off[name]:10.1e}   ({exact_off[name]:.1e})")
    return int(not all(difference <= TOLERANCE for difference in off.values()))  # so that a NaN fails


if __name__ == "__main__":
    sys.exit(main())
