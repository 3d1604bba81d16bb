"""What memory a device, or this machine, has left."""

import re
import socket
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from orpo_exp.plugins.ranks import Ranks

CGROUPS = Path("/sys/fs/cgroup")
# Of the two versions of control groups: where one's files lie, its limit, what is used and cannot be given back.
KINDS = (
    (CGROUPS, "memory.max", re.compile(r"^anon (\d+)$", re.MULTILINE)),
    (CGROUPS / "memory", "memory.limit_in_bytes", re.compile(r"^total_rss (\d+)$", re.MULTILINE)),
)


def held_now() -> int:
    """The memory that this process holds, in bytes."""
    return int(psutil.Process().memory_info().rss)


def forget_peak(device: torch.device) -> None:
    """Have `Ranks.peak_memory_bytes` begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # where that is not allowed, the peak of before counts as well
            Path("/proc/self/clear_refs").write_text("5")


def ranks_here(ranks: Ranks) -> int:
    """How many of the ranks are on one machine, at most. Called on all of them."""
    hosts = ranks.exchange(socket.gethostname())
    return max(hosts.count(host) for host in hosts)


def free_bytes(device: torch.device) -> int:
    """What is left for this process: of the GPU's memory, beside what it has already; or of this machine's and its
    control group's, on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    return min([int(psutil.virtual_memory().available), *limits()])


def limits(
    kinds: tuple[tuple[Path, str, re.Pattern[str]], ...] = KINDS, own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """What each control group that this process is in, or that all here are in, leaves of its limit; none without."""
    groups = [line.split(":", 2) for line in own.read_text().splitlines()] if own.exists() else []
    paths = {path.lstrip("/") for _, names, path in groups if names in ("", "memory")}
    found = []
    for root, limit, used in kinds:
        for folder in {root, *(root / path for path in paths)}:
            try:
                most, taken = int((folder / limit).read_text()), used.search((folder / "memory.stat").read_text())
            except (OSError, ValueError):  # no such group, or no limit: `max`
                continue
            found.append(most - (int(taken[1]) if taken else 0))
    return found
