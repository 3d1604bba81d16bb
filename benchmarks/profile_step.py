"""Where the time of a training step goes, on a CPU or a GPU, for any command line.

    uv run python benchmarks/profile_step.py +experiment=quickstart
    uv run python benchmarks/profile_step.py --steps 10 +experiment=orpo data.path=pairs.jsonl model.path=...

The run's first steps pass unseen, the next are recorded by torch's profiler, and there the run ends. Printed: seconds a
step; how much of them the calls of the loop take; how much the operators, by kind, each without what it calls. What is
left of both is Python, and waiting.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from orpo_exp import cli
from orpo_exp.training.loop import Loop

UNSEEN = 3  # steps before the profiler starts
KINDS = {  # what an operator's name holds, the first that fits
    "attention": ("attention", "flash"),
    "matrix products": ("mm", "matmul", "linear"),
    "optimizer": ("_foreach", "_fused", "addcdiv", "addcmul", "lerp", "sqrt"),
    "copies": (
        "copy",
        "cat",
        "index",
        "gather",
        "select",
        "slice",
        "_to",
        "zero",
        "fill",
        "empty",
        "embedding",
        "clone",
    ),
    "elementwise": ("exp", "log", "mul", "add", "sub", "div", "sum", "mean", "max", "silu", "neg", "pow", "sigmoid"),
}


class Recorded(BaseException):
    """Enough was seen: the run ends here."""


def recorded(steps: int, overrides: list[str]) -> tuple[profile, Counter[str], float]:
    """The profile of some steps of a run, the seconds that the loop's calls took, and those of the steps."""
    whole, calls, seen = Loop.train_step, Counter[str](), 0.0
    found = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])])

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def of(*args: Any, **given: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **given)
            finally:
                calls[name] += time.perf_counter() - began

        return of

    def train_step(loop: Loop) -> dict[str, float]:
        nonlocal seen
        if loop.step == UNSEEN + steps + 1:
            found.stop()
            raise Recorded
        if loop.step == UNSEEN + 1:
            for owner, name in ((loop.sharing.layout, "collate"), (loop.plugin, "score"), (loop.plugin, "step"),
                                (loop.plugin, "forward_backward")):  # fmt: skip
                setattr(owner, name, timed(name, getattr(owner, name)))
            found.start()
        began = time.perf_counter()
        metrics = whole(loop)
        seen += time.perf_counter() - began if loop.step > UNSEEN else 0
        return metrics

    Loop.train_step = train_step  # type: ignore[method-assign]
    try:
        code = cli.main(
            [*overrides, "train.eval_every=0", "train.save_every=0", f"train.max_steps={UNSEEN + steps + 2}"]
        )
    except Recorded:
        return found, calls, seen
    raise SystemExit(code)


def main() -> None:
    """Record, and print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="steps that are recorded")
    args, overrides = parser.parse_known_args()
    found, calls, seen = recorded(args.steps, overrides)
    kinds, operators = Counter[str](), Counter[str]()
    for event in found.key_averages():
        taken = max(event.self_cpu_time_total, getattr(event, "self_device_time_total", 0)) / 1e6
        kinds[next((kind for kind, parts in KINDS.items() if any(of in event.key for of in parts)), "others")] += taken
        operators[event.key] += taken
    print(f"\n{seen / args.steps:.3f} seconds a step")
    for title, parts in {
        "calls": calls,
        "kinds of operators": kinds,
        "operators": Counter(dict(operators.most_common(15))),
    }.items():
        print(f"\n{title}")
        for name, seconds in parts.most_common():
            print(f"  {seconds / seen:6.1%}  {name}")


if __name__ == "__main__":
    main()
