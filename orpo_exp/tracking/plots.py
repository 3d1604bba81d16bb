"""The curves of one run as pictures, drawn from its metrics.jsonl."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_exp.tracking.jsonl import FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[dict[str, Any]]

# Okabe and Ito's colours: told apart by every eye
BLUE, ORANGE, GREEN, RED, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#333333"
STYLE = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
TITLES = {
    "loss": "loss",
    "lr": "learning rate",
    "lam": "lambda",
    "grad_norm": "gradient norm before clipping",
    "pairs_per_second": "pairs per second",
}
OWN_PICTURE = ("loss", "rewards/", "logps/")  # what training.png leaves to the others, or to nobody
FEW = 30  # up to so many points each is marked


def plot_run(folder: Path) -> list[Path]:
    """Draw plots/loss.png, preference.png and training.png from a run's metrics; the files that were written.

    A metric that is missing is left out, and so is a picture without any.
    """
    records = read_metrics(folder / FILE)
    train = [record for record in records if record["split"] == "train"]
    evaluated = [record for record in records if record["split"] == "eval"]
    names = {name for record in records for name in record}

    losses = ["loss", *sorted(name for name in names if name.endswith("_loss"))]
    pictures: dict[str, dict[str, Callable[[Axes], None]]] = {
        "loss": {title(name): curve(name, train, evaluated) for name in losses if name in names},
        "preference": preference_panels(names, train, evaluated),
        "training": {
            title(name): curve(name, train, ())
            for name in ("lr", "lam", "grad_norm", "pairs_per_second")
            if any(name in record for record in train)
        },
    }
    return [draw(folder / "plots" / f"{name}.png", panels) for name, panels in pictures.items() if panels]
