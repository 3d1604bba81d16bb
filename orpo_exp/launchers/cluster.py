"""What Slurm tells of a partition and its nodes, and whether it would ever run what is to be asked for."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from orpo_exp.launchers.base import Finding

SECONDS = 20  # for an answer
GONE = (
    "down",
    "drain",
    "fail",
    "unknown",
    "power",
    "reboot",
    "maint",
)  # how states of nodes begin that run nothing now
NODE = "%N|%T|%c|%m|%G"


@dataclass(frozen=True)
class Asked:
    """What a job asks for. partition: None for the cluster's default. gpus, cores, memory_mb: of each node; None:
    whatever there is. minutes: its time limit."""

    partition: str | None
    nodes: int
    gpus: int
    cores: int
    memory_mb: int | None
    minutes: int


@dataclass(frozen=True)
class Node:
    """A node as sinfo knows it. state: such as idle, mixed, down*. memory_mb: of all jobs together."""

    name: str
    state: str
    cores: int
    memory_mb: int
    gpus: int

    @property
    def up(self) -> bool:
        """Whether it runs jobs now."""
        return not self.state.startswith(GONE)

    def has(self, asked: Asked) -> bool:
        """Whether a part of the job has room on it, once nothing else runs there."""
        memory = asked.memory_mb is None or self.memory_mb >= asked.memory_mb
        return self.gpus >= asked.gpus and self.cores >= asked.cores and memory


def findings(asked: Asked) -> list[Finding]:
    """What Slurm says of it, a sentence each."""
    try:
        partitions = partitions_of(told("scontrol", "--oneliner", "show", "partition"))
        chosen = choose(partitions, asked.partition)
        if chosen is None:
            return [unknown(partitions, asked.partition)]
        name = chosen["PartitionName"]
        nodes = nodes_of(told("sinfo", "--noheader", "--Node", f"--partition={name}", f"--format={NODE}"))
    except (OSError, subprocess.SubprocessError) as error:
        return [Finding(True, f"Slurm does not answer, and nothing is known of it: {error}")]
    return [state(chosen), limit(chosen, asked), *room(chosen, nodes, asked)]


def told(*command: str) -> str:
    """What a program of Slurm's prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    return done.stdout


def partitions_of(text: str) -> list[dict[str, str]]:
    """Of `scontrol --oneliner show partition` the fields of each partition."""
    lines = [line for line in text.splitlines() if line.startswith("PartitionName=")]
    return [dict(field.split("=", 1) for field in line.split() if "=" in field) for line in lines]


def nodes_of(text: str) -> list[Node]:
    """Of `sinfo --Node --format=NODE` the nodes."""
    nodes = {}
    for line in text.splitlines():
        if line.count("|") == NODE.count("|"):
            name, state, cores, memory, gres = line.split("|")
            nodes[name] = Node(name, state, whole(cores), whole(memory), gpus_in(gres))
    return list(nodes.values())


def gpus_in(gres: str) -> int:
    """The GPUs in a node's generic resources: `gpu:a100:4(S:0-1),shard:8` has 4."""
    return sum(int(of) for of in re.findall(r"(?:^|,)gpu(?::[^,:()]+)?:(\d+)", gres))


def whole(number: str) -> int:
    """`64+`, of nodes that differ, is 64."""
    return int(number.rstrip("+") or 0)


def minutes_of(limit: str) -> float:
    """A time limit of Slurm's, [days-]hours:minutes:seconds, in minutes."""
    if not re.match(r"\d", limit):  # UNLIMITED, NONE
        return float("inf")
    days, _, rest = limit.rpartition("-")
    hours, minutes, seconds = ([0, 0, 0] + [int(part) for part in rest.split(":")])[-3:]
    return 1440 * int(days or 0) + 60 * hours + minutes + seconds / 60


def choose(partitions: Sequence[dict[str, str]], name: str | None) -> dict[str, str] | None:
    """The partition that is asked for, of several the first; or the default one."""
    names = name.split(",") if name else None
    fitting = (of for of in partitions if (of["PartitionName"] in names if names else of.get("Default") == "YES"))
    return next(fitting, None)


def unknown(partitions: Sequence[dict[str, str]], name: str | None) -> Finding:
    """That there is none."""
    known = ", ".join(of["PartitionName"] for of in partitions) or "none"
    return Finding(False, f"There is no {f'partition {name}' if name else 'default partition'}; there are: {known}.")


def state(partition: dict[str, str]) -> Finding:
    """Whether it takes jobs."""
    name, now = partition["PartitionName"], partition.get("State", "UP")
    return Finding(now == "UP", f"The partition {name} is {now.lower()}.")


def limit(partition: dict[str, str], asked: Asked) -> Finding:
    """Whether a job may be so long."""
    most = minutes_of(partition.get("MaxTime", "UNLIMITED"))
    if asked.minutes <= most:
        return Finding(
            True, f"Jobs may take {partition.get('MaxTime', 'UNLIMITED').lower()}; {asked.minutes} min are asked for."
        )
    text = f"hydra.launcher.timeout_min={asked.minutes} is more than the {most:.0f} that a job may take there."
    return Finding(False, text)


def room(partition: dict[str, str], nodes: Sequence[Node], asked: Asked) -> list[Finding]:
    """Whether there are as many nodes as are asked for, with what is asked of each."""
    each = f"{asked.cores} cores"
    each += f", {asked.gpus} GPUs" if asked.gpus else ""
    each += f", {asked.memory_mb} MB" if asked.memory_mb else ""
    fitting = [node for node in nodes if node.has(asked)]
    up = sum(node.up for node in fitting)
    found = []
    most = partition.get("MaxNodes", "UNLIMITED")
    if most.isdigit() and int(most) < asked.nodes:
        found.append(Finding(False, f"A job may have {most} nodes there; {asked.nodes} are asked for."))
    text = f"{len(fitting)} of {len(nodes)} nodes have what is asked for ({asked.nodes} with {each})"
    if len(fitting) < asked.nodes:
        best = max((node.gpus for node in nodes), default=0)
        return [*found, Finding(False, f"{text}; the most GPUs of a node are {best}.")]
    waits = "" if up >= asked.nodes else f", but only {up} of them are up: a job would wait for the others"
    return [*found, Finding(True, f"{text}{waits}.")]
