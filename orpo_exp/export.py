"""A Hugging Face folder of any checkpoint: `python -m orpo_exp.export RUN[/checkpoints/step-N] FOLDER`.

One process, on a CPU, whatever plugin wrote the checkpoint and on however many ranks; it holds the parameters of one
file at a time.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from orpo_exp.adapters.lora import Init
from orpo_exp.adapters.peft import SETTINGS, WEIGHTS, peft_name
from orpo_exp.plugins.pieces import POLICY, Pieces, write_model
from orpo_exp.plugins.whole import POLICY as WHOLE
from orpo_exp.schema import Refused
from orpo_exp.training.checkpoints import MANIFEST, MODEL, newest_valid, verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, or 2 where it is refused."""
    parser = argparse.ArgumentParser(prog="python -m orpo_exp.export", description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint", type=Path, help="a run's folder (its newest checkpoint) or one of its checkpoints"
    )
    parser.add_argument("folder", type=Path, help="where to write; a new folder, or an empty one")
    args = parser.parse_args(arguments)
    try:
        checkpoint = export(args.checkpoint, args.folder)
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 2
    print(f"{checkpoint} -> {args.folder}")
    return 0


def export(given: Path, folder: Path) -> Path:
    """Write the weights of a checkpoint, or its adapter, with configuration and tokenizer, as `from_pretrained` loads
    them; which checkpoint it was. Raises Refused where there is none, one that is not whole, or something in the folder
    already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} is there already, and not an empty folder. Choose another.")
    if (given / MANIFEST).is_file():
        checkpoint = given
        verify(checkpoint)
    elif found := newest_valid(given / "checkpoints"):
        checkpoint = found[0]
    else:
        raise Refused(f"{given} is neither a run with checkpoints nor a checkpoint. Look for checkpoints/step-*.")
    about = checkpoint.parent / MODEL
    if not about.is_dir():
        raise Refused(f"{about} is not there: it comes with the checkpoints of version 0.2. Resume the run once.")
    if (about / SETTINGS).is_file():
        init = json.loads((about / SETTINGS).read_text(encoding="utf-8")).get("init_lora_weights")
        if init in [of.value for of in Init if of.rewrites]:
            do = "Look for the whole model in model/, once the run has ended."
            raise Refused(f"its adapter began by {init}, beside weights that are not those of the base any more. {do}")
    shutil.copytree(about, folder, dirs_exist_ok=True)
    if (folder / SETTINGS).is_file():
        save_file({peft_name(name): tensor for name, tensor in weights(checkpoint)}, folder / WEIGHTS)
        return checkpoint
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype = getattr(torch, config.get("dtype") or config["torch_dtype"])  # as the run's transformers called it
    write_model(folder, ((name, tensor.to(dtype)) for name, tensor in weights(checkpoint)))
    return checkpoint


def weights(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Every whole parameter, one at a time."""
    if (whole := checkpoint / WHOLE).is_file():
        with safe_open(whole, "pt") as file:
            # of tied weights one name is there, perhaps not the one that transformers looks for
            others = {other: name for other, name in (file.metadata() or {}).items() if other != "format"}
            for name, kept in ({name: name for name in file.keys()} | others).items():  # noqa: SIM118
                yield name, file.get_tensor(kept).clone()
        return
    pieces = Pieces(checkpoint, POLICY)
    for name in sorted(pieces.index):
        yield name, pieces.whole(name)


if __name__ == "__main__":
    sys.exit(main())
