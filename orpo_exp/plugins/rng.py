"""The states of every random number generator that a rank may draw from, as tensors."""

import math
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def seed_rng(seed: int) -> None:
    """Set all global generators, each device's included, by one number."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's, the device's, Python's and NumPy's global generators."""
    _, python, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(python, dtype=torch.int64),
        "python/gauss": _optional(gauss),
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "numpy/place": torch.tensor([numpy["state"]["pos"], numpy["has_gauss"]], dtype=torch.int64),
        "numpy/gauss": _optional(numpy["gauss"]),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on from an `rng_state`. A device of another kind keeps its own generator as it is."""
    torch.set_rng_state(state["torch"])
    gauss = float(state["python/gauss"])
    random.setstate((3, tuple(state["python"].tolist()), None if math.isnan(gauss) else gauss))
    position, has_gauss = state["numpy/place"].tolist()
    key = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, float(state["numpy/gauss"])))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _optional(number: float | None) -> Tensor:
    return torch.tensor(math.nan if number is None else number, dtype=torch.float64)
