# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["trl==1.16.0", "transformers==5.23.0", "torch==2.13.0", "matplotlib>=3.9"]
# ///
"""Pairs per second and memory on this machine's CPU, against TRL 1.16's ORPO and DPO trainers, side by side.

    uv run benchmarks/throughput.py                         # generated pairs: long shared prompts; short prompts
    uv run benchmarks/throughput.py --pairs FILE            # others: ShareGPT-like JSON
    uv run benchmarks/throughput.py --loss orpo dpo --plot throughput.svg

A Llama with 4 layers of 256 and a vocabulary of 16,000 trains in float32, 8 pairs a step, from the same weights, on the
same batches in the same order. TRL runs at micro-batches of 8, 4, 2 and 1 and its best one counts; orpo_exp chooses for
itself. They take turns, each in a process of its own, TRL in this script's environment, orpo_exp by its command line.

Printed: pairs and tokens (each counted once) per second; by how much the peak of memory grows over that of the same
program training a tiny model; the time of a step's products of weights and activations, measured alone in their shapes
with each distinct token once, as a share of the step; how far the two curves of the loss are apart.
"""

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BATCH, WARM_UP, LONGEST, LR = 8, 3, 1024, 1e-4  # pairs; steps that do not count; tokens; learning rate
WORDS = 15_990
FULL = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 16_000}
TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16_000}
# mean tokens of prompt, chosen and rejected answer; and the longest prompt, the longest answer
GENERATED = {"long shared prompts": (120, 40, 50, 400, 110), "short prompts, long answers": (20, 90, 110, 60, 400)}
Pairs = list[dict[str, str]]


def generated(means: tuple[int, int, int, int, int], count: int) -> Pairs:
    """Pairs of random words, their lengths log-normal: most are short, some are long."""
    rng = random.Random(0)

    def text(mean: int, longest: int) -> str:
        length = min(longest, max(4, round(mean * rng.lognormvariate(-0.245, 0.7))))
        return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(length))

    names = {"prompt": (0, 3), "chosen": (1, 4), "rejected": (2, 4)}
    pairs = [{name: text(means[mean], means[most]) for name, (mean, most) in names.items()} for _ in range(count)]
    return [pair | {"prompt": f"{pair['prompt']} "} for pair in pairs]  # TRL's DPO tokenises prompt and answer as one


def read(path: Path) -> Pairs:
    """Pairs of a ShareGPT-like file, as plain text."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    prompts = ["".join(f"{turn['from']}: {turn['value']}\n" for turn in row["conversations"]) for row in rows]
    answers = [{name: row[name]["value"] for name in ("chosen", "rejected")} for row in rows]
    return [{"prompt": f"{prompt}gpt:", **both} for prompt, both in zip(prompts, answers, strict=True)]


def write_model(folder: Path, sizes: dict[str, int], pairs: Pairs, longest: int = LONGEST) -> int:
    """A random Llama and a tokenizer with a token for each word, or trained on the pairs where there are more words.

    Returns how many parameters it has.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = {**sizes, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": longest}
    tokens = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**config, **tokens, tie_word_embeddings=False))
    model.save_pretrained(folder)
    named = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    whole = {**named, **config, **tokens, "tie_word_embeddings": False, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(whole))  # in the spelling of transformers 4
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "</s>", "<unk>"]
    if all(pair["prompt"].startswith("w") for pair in pairs):
        words = {name: i for i, name in enumerate(special)} | {f"w{i}": i + 3 for i in range(WORDS)}
        tokenizer.model = models.WordLevel(words, unk_token="<unk>")
    else:
        texts = [text for pair in pairs for text in pair.values()]
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"model_max_length": longest}))
    return sum(parameter.numel() for parameter in model.parameters())


def train_trl(loss: str, model: str, pairs: str, micro_batch: int, steps: int) -> dict[str, Any]:
    """Train with TRL in this process, on the pairs in the order of the file."""
    import torch
    from datasets import load_dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    if loss == "orpo":
        from trl.experimental.orpo import ORPOConfig as Config
        from trl.experimental.orpo import ORPOTrainer as Trainer
    else:
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    class InOrder(Trainer):
        def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=Config(
                output_dir=folder, use_cpu=True, bf16=False, save_strategy="no", report_to="none", logging_steps=1,
                disable_tqdm=True, beta=0.1, max_length=LONGEST, per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=BATCH // micro_batch, max_steps=steps, learning_rate=LR, weight_decay=0.0,
                lr_scheduler_type="constant", gradient_checkpointing=False,
            ),
            train_dataset=load_dataset("json", data_files=pairs, split="train", cache_dir=folder),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    seconds = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"pairs_per_second": BATCH * len(seconds) / sum(seconds) if seconds else 0, "peak": peak, "losses": losses}


def run_trl(*given: object) -> dict[str, Any]:
    """`train_trl` in a process of its own."""
    command = [sys.executable, __file__, "--trl", json.dumps([str(of) if isinstance(of, Path) else of for of in given])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_project(*command: str, cwd: Path) -> str:
    """What a command prints that is run in the project's environment."""
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}  # it names this script's environment
    whole = ["uv", "run", "--project", str(ROOT), "--no-sync", "python", *command]
    done = subprocess.run(whole, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    return done.stdout


def run_ours(
    loss: str, model: Path, pairs: Path, folder: Path, steps: int, batch: int = BATCH, longest: int = LONGEST
) -> dict[str, Any]:
    """Train with orpo_exp, by its command line."""
    in_project(
        "-m", "orpo_exp", "+experiment=orpo", f"loss={loss}", "data=json", f"data.path={pairs}",
        f"data.eval_path={pairs.with_name('held_out.jsonl')}", f"data.max_length={longest}", "model=hf",
        f"model.path={model}", f"hydra.run.dir={folder}", "tracker=[]", f"train.global_batch_size={batch}",
        f"train.max_steps={steps}", "train.eval_every=0", "train.save_every=0", "train.samples=0",
        f"optimizer.lr={LR}", "scheduler=constant", "scheduler.warmup=0", cwd=pairs.parent,
    )  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "train"]
    result = json.loads((folder / "result.json").read_text())
    counted = rows[WARM_UP:]
    return {
        "pairs_per_second": len(counted) / sum(1 / row["pairs_per_second"] for row in counted) if counted else 0,
        "peak": result["peak_memory_bytes"],
        "losses": [row["loss"] for row in rows],
        "layout": next((line for line in (folder / "run.log").read_text().splitlines() if "layout: " in line), ""),
    }


def products(rows: list[tuple[int, int]], sizes: dict[str, int]) -> float:
    """Seconds that a step's products of weights and activations take alone, forward and backward.

    rows: of each micro-batch the tokens that go through the layers, and those that are scored.
    """
    import torch

    hidden, inner, layers = (sizes[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    shapes = [(hidden, hidden, 4 * layers), (hidden, inner, 2 * layers), (inner, hidden, layers)]
    whole = 0.0
    for tokens, scored in rows:
        for n, into, out, times in [(tokens, *of) for of in shapes] + [(scored, hidden, sizes["vocab_size"], 1)]:
            x, w, y = torch.randn(n, into), torch.randn(into, out), torch.randn(n, out)
            a, b, c = torch.empty(n, out), torch.empty(n, into), torch.empty(into, out)  # new memory would cost time
            seconds = []
            for _ in range(4):
                began = time.perf_counter()
                torch.mm(x, w, out=a), torch.mm(y, w.T, out=b), torch.mm(x.T, y, out=c)
                seconds.append(time.perf_counter() - began)
            whole += times * min(seconds)
    return whole


def compare(name: str, pairs: Pairs, loss: str, rounds: int, steps: int, micro_batches: list[int]) -> dict[str, Any]:
    """All of one kind of data; its row of the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for model, sizes in {"full": FULL, "tiny": TINY}.items():
            write_model(folder / model, sizes, pairs)
        ours_file, trl_file = folder / "pairs.jsonl", folder / "in_order.jsonl"
        ours_file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        (folder / "held_out.jsonl").write_text(json.dumps(pairs[0]) + "\n")
        ask = "import json; from orpo_exp.data.order import Order; o = Order({}, {}, 0)\n"
        ask += "print(json.dumps([o.positions(s) for s in range(1, {})]))"
        batches = json.loads(in_project("-c", ask.format(len(pairs), BATCH, steps + 1), cwd=folder))
        trl_file.write_text("".join(json.dumps(pairs[i]) + "\n" for batch in batches for i in batch))
        counts = json.loads(in_project("-c", COUNT, str(folder / "full"), str(ours_file), str(LONGEST), cwd=folder))
        used = [counts[i] for batch in batches for i in batch]

        idle_trl = run_trl(loss, folder / "tiny", trl_file, 1, 1)["peak"]
        idle_ours = run_ours(loss, folder / "tiny", ours_file, folder / "idle", 1)["peak"]
        trl: dict[int, list[dict[str, Any]]] = {size: [] for size in micro_batches}
        ours = []
        for number in range(rounds):
            ours.append(run_ours(loss, folder / "full", ours_file, folder / f"ours-{number}", steps))
            print(f"  {name}, orpo_exp: {ours[-1]['pairs_per_second']:.2f} pairs/s", file=sys.stderr)
            for size, found in trl.items():
                found.append(run_trl(loss, folder / "full", trl_file, size, steps))
                print(f"  {name}, TRL by {size}: {found[-1]['pairs_per_second']:.2f} pairs/s", file=sys.stderr)

    def median(found: list[dict[str, Any]], what: str) -> float:
        return statistics.median(of[what] for of in found)

    best = max(trl, key=lambda size: median(trl[size], "pairs_per_second"))
    speed, theirs = median(ours, "pairs_per_second"), median(trl[best], "pairs_per_second")
    tokens = [prompt + chosen + rejected for prompt, chosen, rejected in used]
    mean = sum(tokens) / len(tokens)
    micro = max(1, round(mean * BATCH / 1024))  # micro-batches of a step; see Plugin.micro_batch_tokens
    scored = sum(sum(of) - (of[0] if loss == "dpo" else 1) for of in used) / len(used)
    passes = [(round((mean - 2) * BATCH / micro), round(scored * BATCH / micro))] * micro
    # TRL logs 0 where its loss was no number: its ORPO leaves some answers no token
    losses = [(a, b) for a, b in zip(trl[best][0]["losses"], ours[0]["losses"], strict=True) if a]
    curve = max((abs(a - b) / abs(a) for a, b in losses), default=float("nan"))
    return {
        "data": name, "loss": loss, "prompt": statistics.mean(of[0] for of in used),
        "chosen": statistics.mean(of[1] for of in used), "rejected": statistics.mean(of[2] for of in used),
        "pairs/s": speed, "tokens/s": speed * mean, "TRL pairs/s": theirs, "TRL micro-batch": best,
        "times": speed / theirs,
        "growth MB": (median(ours, "peak") - idle_ours) / 1e6,
        "TRL growth MB": (median(trl[best], "peak") - idle_trl) / 1e6,
        "memory": (median(ours, "peak") - idle_ours) / (median(trl[best], "peak") - idle_trl),
        "products": products(passes, FULL) / (BATCH / speed), "curves apart": curve, "layout": ours[0]["layout"],
    }  # fmt: skip


COUNT = """
import json, sys
from transformers import AutoTokenizer
from orpo_exp.data.tokenize import kept_lengths
tokenizer, found = AutoTokenizer.from_pretrained(sys.argv[1]), []
for line in open(sys.argv[2]):
    of = json.loads(line)
    p, c, r = (len(tokenizer(of[name]).input_ids) for name in ("prompt", "chosen", "rejected"))
    prompt, answer = kept_lengths(p, c + 1, r + 1, int(sys.argv[3]), 1)
    found.append((prompt, min(c + 1, answer), min(r + 1, answer)))
print(json.dumps(found))
"""


def main() -> None:
    """Run what was asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", choices=["orpo", "dpo"], nargs="+", default=["orpo"])
    parser.add_argument("--pairs", type=Path, help="a file of pairs, in place of the generated ones")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side trains; medians count")
    parser.add_argument("--steps", type=int, default=15, help="steps of each run")
    parser.add_argument(
        "--micro-batches", type=int, nargs="+", default=[8, 4, 2, 1], help="TRL's, of which the best counts"
    )
    parser.add_argument("--plot", type=Path, help="a picture of the table, as .svg or .png")
    parser.add_argument("--trl", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trl:
        print(json.dumps(train_trl(*json.loads(args.trl))))
        return
    data = (
        {args.pairs.name: read(args.pairs)}
        if args.pairs
        else {name: generated(means, BATCH * args.steps) for name, means in GENERATED.items()}
    )
    rows: list[dict[str, Any]] = []
    for loss, (name, of) in itertools.product(args.loss, data.items()):
        rows.append(compare(name, of, loss, args.rounds, args.steps, args.micro_batches))
        titles = [title for title in rows[0] if title != "layout"]
        if len(rows) == 1:
            print(head_of(titles))
        print(row_of(rows[-1][title] for title in titles), flush=True)
    print(*{row["layout"] for row in rows}, sep="\n")
    if args.plot:
        draw(rows, args.plot)


def head_of(titles: Collection[str]) -> str:
    """The head of a table in Markdown."""
    return f"{row_of(titles)}\n|{'---|' * len(titles)}"


def row_of(values: Iterable[Any]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(f'{of:.3g}' if isinstance(of, float) else str(of) for of in values)} |"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of both sides, speed on the left and memory on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.8 * len(rows)), layout="constrained")
    panels = (("pairs per second", "pairs/s", "TRL pairs/s"), ("growth of memory in MB", "growth MB", "TRL growth MB"))
    places, both = range(len(rows)), figure.subplots(1, 2, sharey=True)
    for axes, (title, ours, theirs) in zip(both, panels, strict=True):
        for side, name, shift in ((ours, "orpo_exp", -0.2), (theirs, "TRL, at its best micro-batch", 0.2)):
            bars = axes.barh([place + shift for place in places], [row[side] for row in rows], 0.38, label=name)
            axes.bar_label(bars, fmt=lambda of: f"{of:.3g}" if of < 100 else f"{of:.0f}", padding=2, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_yticks(places, [f"{row['data']}\n{row['loss']}" for row in rows], fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    both[0].invert_yaxis()
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
