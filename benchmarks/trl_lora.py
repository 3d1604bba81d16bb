# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["trl==1.16.0", "transformers==5.23.0", "torch==2.13.0", "peft==0.18.1"]
# ///
"""Ten steps of ORPO and of DPO with LoRA on eight fixed pairs: TRL's released trainers and orpo_exp, side by side.

    uv run benchmarks/trl_lora.py    # a table; exit code 1 where a loss is off TRL's by more than 1e-4

Both begin with the same weights and the same adapter, which peft writes here and orpo_exp reads by adapter=existing;
the reference of DPO is in both the model without what is trained.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from throughput import in_project
from trl_orpo_parity import PAIRS, write_inputs

STEPS, LR, TOLERANCE = 10, 1e-2, 1e-4
MORE = [("Say it twice: ", "it it", "it"), ("Name a colour. ", "Green, I think.", "No.")]


def with_adapter(model: Path, adapter: Path | None = None) -> Any:
    """The model with a fresh adapter, or with one that lies there."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter:
        return PeftModel.from_pretrained(base, adapter, is_trainable=True)
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))


def trl_losses(loss: str, model: Path, adapter: Path, pairs: Path, scratch: Path) -> list[float]:
    """What TRL's trainer logs, step by step."""
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    config, trainer = {"orpo": (ORPOConfig, ORPOTrainer), "dpo": (DPOConfig, DPOTrainer)}[loss]
    size = len(PAIRS + MORE)
    run = trainer(
        model=with_adapter(model, adapter),
        args=config(
            output_dir=str(scratch / loss), use_cpu=True, bf16=False, save_strategy="no", report_to="none",
            logging_steps=1, disable_tqdm=True, beta=0.1, max_length=512, per_device_train_batch_size=size,
            max_steps=STEPS, learning_rate=LR, weight_decay=0.0, lr_scheduler_type="constant",
            gradient_checkpointing=False,
        ),
        train_dataset=load_dataset("json", data_files=str(pairs), split="train", cache_dir=str(scratch / "cache")),
        processing_class=AutoTokenizer.from_pretrained(model),
    )  # fmt: skip
    run.train()
    return [row["loss"] for row in run.state.log_history if "loss" in row]


def our_losses(loss: str, model: Path, adapter: Path, pairs: Path, scratch: Path) -> list[float]:
    """What orpo_exp writes, step by step, run from the command line in the project's environment."""
    folder = scratch / f"ours-{loss}"
    in_project(
        "-m", "orpo_exp", "+experiment=orpo", f"loss={loss}", "data=json", f"data.path={pairs}",
        f"data.eval_path={pairs}", "model=hf", f"model.path={model}", "adapter=existing", f"adapter.path={adapter}",
        f"hydra.run.dir={folder}", "tracker=[]", f"train.global_batch_size={len(PAIRS + MORE)}",
        f"train.max_steps={STEPS}", "train.samples=0", f"optimizer.lr={LR}", "scheduler=constant", "scheduler.warmup=0",
        cwd=scratch,
    )  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["split"] == "train"]


def main() -> int:
    """Train on both sides and print; the exit code."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
        scratch = Path(folder)
        model, pairs = write_inputs(scratch)
        rows = ({"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS + MORE)
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        adapter = scratch / "adapter"
        with_adapter(model).save_pretrained(adapter)
        for loss in ("orpo", "dpo"):
            found[loss] = [of(loss, model, adapter, pairs, scratch) for of in (trl_losses, our_losses)]
    worst = 0.0
    print(f"{'loss':<6}{'step':>4}{'TRL':>14}{'orpo_exp':>14}{'relative':>10}")
    for loss, sides in found.items():
        for step, (theirs, ours) in enumerate(zip(*sides, strict=True), 1):
            off = abs(ours - theirs) / abs(theirs)
            worst = max(worst, off)
            print(f"{loss:<6}{step:>4}{theirs:14.8f}{ours:14.8f}{off:10.1e}")
    return int(not worst <= TOLERANCE)  # so that a NaN fails


if __name__ == "__main__":
    sys.exit(main())
