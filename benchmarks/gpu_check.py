"""Every plugin on this machine's GPUs: does it train, is its curve that of the others, how fast is it, does it go on?

    uv run python benchmarks/gpu_check.py          # under ten minutes, some 30 GB below the folder for temporary files
    uv run python benchmarks/gpu_check.py --toy    # a tiny model on whatever there is; on a CPU two processes
    uv run python benchmarks/gpu_check.py --shape llama-1b --only ddp --only ddp-flex
    uv run python benchmarks/gpu_check.py --shape llama-7b --only lora --only lora-nf4

Each plugin, and ddp in some ways of attending and keeping, trains a model of the shape of Qwen2.5-0.5B (or of a larger
Llama), with the same random weights, on the same pairs for 30 steps in 16 bits, by the command line, in processes of
its own. So does LoRA beside weights in 16 and in 4 bits, whose losses are compared with no other's and whose operations
are not counted. The last one that could is then killed on its way and resumed. One that fails, or takes more than its
share of the time, is a row of the table with the reason. Needs no network.

Prints a table and writes it to gpu_check.json. Ends with exit code 1 where losses are further apart than the precision
allows, nothing trained or it did not go on; with 2 where packages are missing.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]
NEEDED = (
    "torch", "transformers", "tokenizers", "safetensors", "datasets", "hydra", "omegaconf", "colossalai", "peft",
    "einops", "galore_torch", "bitsandbytes", "psutil", "rich", "submitit", "typing_extensions", "pytest",
)  # fmt: skip

STEPS, SAVED_AT, KILLED_AT, WARM_UP = 30, 20, 22, 5  # steps; of WARM_UP the speed does not count
CLOSE = 2e-2  # relative, of losses: two bits more than the rounding of bfloat16
FORMULA = (
    "6 x (weights of the layers x tokens + weights of the head x tokens) + 6 x layers x hidden x pairs of tokens that "
    "see each other, twice: forward and backward passes, the prompt's tokens counted once, no padding"
)
PEAKS = {  # bfloat16 operations per second at best, dense; the first name that the device's contains
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12,
    "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A10": 125e12, "4090": 165e12,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A model's sizes under Hugging Face's names, and how much it trains on. words: of each text, at most."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    batch: int
    micro_batch: int
    words: int

    def model(self) -> dict[str, int]:
        """What the model's configuration says."""
        return {k: v for k, v in asdict(self).items() if k not in ("model_type", "batch", "micro_batch", "words")}

    def flops(self, prompt: int, chosen: int, rejected: int) -> float:
        """Operations that a pair of these lengths in tokens needs; see FORMULA."""
        h, keys = self.hidden_size, self.hidden_size // self.num_attention_heads * self.num_key_value_heads
        layers = self.num_hidden_layers * (2 * h * h + 2 * h * keys + 3 * h * self.intermediate_size)
        # of the two sequences' causal halves, the prompt's own is there once
        seen = (prompt + chosen) ** 2 + (prompt + rejected) ** 2 - prompt**2
        tokens = prompt + chosen + rejected
        return 6.0 * ((layers + self.vocab_size * h) * tokens + self.num_hidden_layers * h * seen)


SHAPES = {
    "qwen-0.5b": Size("qwen2", 896, 4864, 24, 14, 2, 151_936, batch=32, micro_batch=8, words=50),
    "llama-1b": Size("llama", 2048, 8192, 16, 32, 8, 128_256, batch=32, micro_batch=4, words=200),
    "llama-7b": Size("llama", 4096, 11_008, 32, 32, 32, 32_000, batch=16, micro_batch=2, words=200),
    "llama-8b": Size("llama", 4096, 14_336, 32, 32, 8, 128_256, batch=16, micro_batch=2, words=200),
}
TOY = Size("qwen2", 64, 128, 4, 4, 2, 260, batch=8, micro_batch=2, words=6)


def ways(ranks: int) -> dict[str, list[str]]:
    """What is tried on so many ranks: a name, and what is added to the command."""
    ddp = ["plugin=ddp", "plugin.precision=bf16"]
    kept = ["model.gradient_checkpointing=true", "model.gradient_checkpointing_keeps=products"]
    tensor, stages = 2 if ranks % 2 == 0 else 1, 2 if ranks % 4 == 0 else 1
    lora = [*ddp, "adapter=lora", "model.dtype=bfloat16", "model.gradient_checkpointing=true"]
    split = [f"plugin.tp_size={tensor}", f"plugin.pp_size={stages}", "plugin.zero_stage=1"]
    return {
        "ddp": ddp,
        "ddp-padded": [*ddp, "layout=padded"],
        "ddp-flex": [*ddp, "model.several_texts=flex"],
        "ddp-products-kept": [*ddp, *kept],
        "lora": lora,
        "lora-nf4": [*lora, "model.quantization=nf4"],
        **{name: [f"plugin={name}", "plugin.precision=bf16"] for name in ("zero1", "zero2", "zero2_offload")},
        "gemini": ["plugin=gemini"],
        f"hybrid-tp{tensor}-pp{stages}": ["plugin=hybrid", "plugin.precision=bf16_weights", *split],
    }


def make_model(folder: Path, size: Size) -> None:
    """Write random weights, in 16 bits, and a tokenizer of bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from orpo_exp.models.tokenizers import bytes_tokenizer

    tokenizer = bytes_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(size.model_type, **size.model(), **ids, tie_word_embeddings=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_pairs(path: Path, size: Size) -> float:
    """Write pairs of uneven lengths; the operations that one needs on average."""
    from support import WORDS

    rng = random.Random(0)

    def text(most: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(most // 3, most)))

    rows = [
        {"prompt": text(size.words) + "\n", "chosen": text(size.words), "rejected": text(size.words)}
        for _ in range((STEPS + 1) * size.batch)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return statistics.mean(size.flops(*(len(row[key]) for key in ("prompt", "chosen", "rejected"))) for row in rows)


class Bench:
    """Runs on the same model and pairs in a folder, each within its share of the time that is left."""

    def __init__(self, folder: Path, size: Size, ranks: int, ends: float) -> None:
        self.folder, self.ranks, self.ends = folder, ranks, ends
        self.common = [
            "+experiment=orpo", "data=json", "data.path=pairs.jsonl", f"data.eval_size={size.batch}", "model=hf",
            "model.path=weights", "tracker=[]", f"train.global_batch_size={size.batch}", "train.eval_every=0",
            f"train.micro_batch_size={size.micro_batch}", f"train.max_steps={STEPS}", "train.samples=1",
            "train.sample_tokens=4", "optimizer.lr=1e-4", f"processes={ranks}",
        ]  # fmt: skip
        threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.environment = {"OMP_NUM_THREADS": threads, "PYTHONPATH": path}

    def start(self, name: str, overrides: list[str]) -> subprocess.Popen[str]:
        """Start a run, or go on with it."""
        from support import start_run

        command = [*self.common, *overrides, f"hydra.run.dir={self.folder / name}"]
        return start_run(self.folder, *command, environment=self.environment)

    def limit(self, parts: int) -> float:
        """Seconds for the next one of so many parts."""
        return (self.ends - time.monotonic()) / parts

    def finish(self, name: str, process: subprocess.Popen[str], limit: float) -> None:
        """Wait for the end of a run. Raises RuntimeError with the reason where it is not a good one."""
        try:
            output, _ = process.communicate(timeout=max(limit, 1))
        except subprocess.TimeoutExpired:
            end(process)
            raise RuntimeError(f"after {limit:.0f} s, its share, {self.reached(name)} steps were done") from None
        if process.returncode:
            raise RuntimeError(reason(output, self.result(name).get("error")))

    def train(self, name: str, overrides: list[str], limit: float) -> dict[str, Any]:
        """Train once; what it was like."""
        began = time.monotonic()
        self.finish(name, self.start(name, overrides), limit)
        rows = self.steps(name)
        return {
            "losses": [row["loss"] for row in rows],
            "pairs_per_second": statistics.median(row["pairs_per_second"] for row in rows[WARM_UP:]),
            "peak_memory_bytes": self.result(name)["peak_memory_bytes"],
            "seconds": time.monotonic() - began,
        }

    def resume(self, name: str, overrides: list[str], limit: float) -> dict[str, Any]:
        """Train again, killed on the way and resumed; how far its losses and gradient norms are from before."""
        again, ends = f"{name}-resumed", time.monotonic() + limit
        overrides = [*overrides, f"train.save_every={SAVED_AT}"]
        process = self.start(again, overrides)
        while self.reached(again) < KILLED_AT and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.01)
        end(process)
        self.finish(again, self.start(again, overrides), ends - time.monotonic())
        log = (self.folder / again / "run.log").read_text()
        if f"resumed at step {SAVED_AT}" not in log:
            raise RuntimeError("it began anew")
        both = zip(self.steps(name), self.steps(again), strict=True)
        return {"difference": max(apart(a[of], b[of]) for a, b in both for of in ("loss", "grad_norm"))}

    def steps(self, name: str) -> list[dict[str, Any]]:
        """What a run has logged of its training steps."""
        from orpo_exp.tracking.jsonl import read_metrics

        return [row for row in read_metrics(self.folder / name / "metrics.jsonl") if row["split"] == "train"]

    def reached(self, name: str) -> int:
        """How many training steps a run has done."""
        metrics = self.folder / name / "metrics.jsonl"
        return metrics.read_text().count('"split": "train"') if metrics.exists() else 0

    def result(self, name: str) -> dict[str, Any]:
        """A run's result.json; empty where it has none."""
        path = self.folder / name / "result.json"
        result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return result


def end(process: subprocess.Popen[str]) -> None:
    """SIGKILL a run and all its ranks, the ranks first, and wait until they let go of what they have written to."""
    from support import kill_tree

    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        kill_tree(process)
        return
    process.kill()  # one of them had ended before it was its turn
    process.communicate()


def reason(output: str, error: str | None) -> str:
    """Why a run failed, in a line."""
    lines = [re.sub(r"\s+", " ", line).strip() for line in (error or output).strip().splitlines()]
    refused = [line for line in lines if line.startswith(("key ", "given ", "allowed ", "do "))]
    return "; ".join(refused) or (lines[-1].removeprefix("error: ") if lines else "it said nothing")


def apart(a: float, b: float) -> float:
    """The relative difference."""
    return abs(a - b) / max(abs(a), 1e-12)


def measured(bench: Bench, tried: dict[str, list[str]], flops: float, peak: float | None) -> list[dict[str, Any]]:
    """A row for each way, and one for the last that trained, killed and resumed."""
    rows: list[dict[str, Any]] = []
    expected: dict[tuple[str, ...], list[float]] = {}  # losses, by what sets those of others apart
    for number, (name, overrides) in enumerate(tried.items()):
        row: dict[str, Any] = {"plugin": name}
        rows.append(row)
        try:
            row |= bench.train(name, overrides, bench.limit(len(tried) - number + 2))
        except Exception as failure:
            row["reason"] = str(failure)
        else:
            adapted = tuple(of for of in overrides if of.startswith(("adapter=", "model.quantization=")))
            row["difference"] = max(map(apart, expected.setdefault(adapted, row["losses"]), row["losses"]))
            # of each device, where all weights are trained
            row["flops_per_second"] = None if adapted else row["pairs_per_second"] * flops / bench.ranks
            row["mfu"] = row["flops_per_second"] / peak if peak and not adapted else None
        print(line(row), flush=True)
    if trained := [row["plugin"] for row in rows if "losses" in row]:
        row = {"plugin": f"{trained[-1]}-resumed"}
        try:
            row |= bench.resume(trained[-1], tried[trained[-1]], bench.limit(1))
        except Exception as failure:
            row["reason"] = str(failure)
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    if "reason" in row:
        return f"| {row['plugin']} | {row['reason']} | | | | | | |"
    difference = f"{row['difference']:.1e}" if row["difference"] else "0"
    if "losses" not in row:
        return f"| {row['plugin']} | | {difference} | | | | | |"
    mfu = f"{row['mfu']:.1%}" if row["mfu"] is not None else ""
    speed = f"{row['flops_per_second'] / 1e12:.3g}" if row["flops_per_second"] is not None else ""
    return (
        f"| {row['plugin']} | {row['losses'][0]:.4f} to {row['losses'][-1]:.4f} | {difference} "
        f"| {row['pairs_per_second']:.1f} | {row['peak_memory_bytes'] / 1e9:.1f} "
        f"| {speed} | {mfu} | {row['seconds']:.0f} |"
    )


def main() -> int:
    """Measure, print the table, write it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="a tiny model, also without a GPU")
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen-0.5b", help="of the model")
    parser.add_argument("--only", action="append", help="one of the rows alone; repeatable")
    parser.add_argument("--minutes", type=float, default=9.5, help="after which all has ended")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="where to write the table")
    args = parser.parse_args()
    ends = time.monotonic() + 60 * args.minutes - 5
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"These packages are missing: {', '.join(missing)}. Install them, and try again.")
        return 2
    import torch

    gpus = torch.cuda.device_count()
    if not gpus and not args.toy:
        print("There is no GPU here. Add --toy to try a tiny model on the CPU.")
        return 2
    size, device = TOY if args.toy else SHAPES[args.shape], torch.cuda.get_device_name(0) if gpus else "CPU"
    ranks = gpus or 2
    tried = ways(ranks)
    if unknown := set(args.only or ()) - set(tried):
        print(f"There is no {', '.join(sorted(unknown))}: choose out of {', '.join(tried)}.")
        return 2
    peak = next((most for name, most in PEAKS.items() if name in device), None)
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as name:
        folder = Path(name)
        make_model(folder / "weights", size)
        flops = make_pairs(folder / "pairs.jsonl", size)
        bench = Bench(folder, size, ranks, ends)
        best = f"at best {peak:.3g} a second" if peak else "what the device could do is not known"
        print(f"{bench.ranks} x {device}; {flops:.3g} operations a pair, {best}.\nOperations: {FORMULA}.\n")
        print("| plugin | loss | difference | pairs/s | peak memory, GB | TFLOP/s of each | MFU | seconds |")
        print("|---|---|---|---|---|---|---|---|")
        rows = measured(bench, {name: of for name, of in tried.items() if name in (args.only or tried)}, flops, peak)
        versions = next((found for row in rows if (found := bench.result(row["plugin"]).get("versions"))), None)
    about = {
        "date": time.strftime("%Y-%m-%d"), "device": device, "devices": bench.ranks, "versions": versions,
        "size": asdict(size), "steps": STEPS, "flops_per_pair": flops, "formula": FORMULA,
        "peak_flops_per_second": peak,
    }  # fmt: skip
    args.out.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    print(f"\nwritten to {args.out}")
    good = [row for row in rows if row.get("difference", 1.0) <= CLOSE]
    wrong = [row for row in rows if row.get("difference", 0.0) > CLOSE]
    return int(bool(wrong) or not good or "reason" in rows[-1])


if __name__ == "__main__":
    sys.exit(main())
