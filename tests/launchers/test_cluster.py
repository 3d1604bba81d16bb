"""What is read off Slurm's answers: recorded ones, of a test cluster of two nodes and of a larger one."""

import pytest

from orpo_exp.cli import main
from orpo_exp.launchers import cluster
from orpo_exp.launchers.cluster import Asked, findings, gpus_in, minutes_of, nodes_of, partitions_of

SMALL = (
    "PartitionName=main AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A "
    "DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=15 Hidden=NO MaxNodes=UNLIMITED "
    "MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=n[1-2] PriorityJobFactor=1 PriorityTier=1 "
    "RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=REQUEUE State=UP TotalCPUs=8 "
    "TotalNodes=2 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED\n"
    "PartitionName=high AllowGroups=ALL Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED Nodes=n[1-2] State=UP\n"
)
LARGE = (
    "PartitionName=cpu Default=YES MaxNodes=UNLIMITED MaxTime=7-00:00:00 State=UP Nodes=c[1-3]\n"
    "PartitionName=a100 Default=NO MaxNodes=3 MaxTime=2-00:00:00 State=UP Nodes=g[1-4]\n"
    "PartitionName=old Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=INACTIVE Nodes=g[1-4]\n"
)
NODES = (
    "g1|idle|64|515000|gpu:a100:4(S:0-1)\n"
    "g2|mixed|64|515000|gpu:a100:4(S:0-1),shard:a100:8\n"
    "g3|down*|64|515000|gpu:a100:8(S:0-3)\n"
    "g4|drained|64+|515000+|(null)\n"
)


@pytest.fixture
def answers(monkeypatch):
    """What Slurm's programs print; what is asked for is kept."""
    given = {"scontrol": LARGE, "sinfo": NODES}

    def told(*command: str) -> str:
        given["asked"] = " ".join(command)
        return given[command[0]]

    monkeypatch.setattr(cluster, "told", told)
    return given


def asked(partition: str | None = "a100", nodes: int = 1, gpus: int = 4, cores: int = 8, minutes: int = 240) -> Asked:
    return Asked(partition, nodes, gpus, cores, None, minutes)


def test_answers_are_read():
    (main_, high) = partitions_of(SMALL)
    assert (main_["PartitionName"], main_["Default"], main_["MaxTime"]) == ("main", "YES", "UNLIMITED")
    assert high["State"] == "UP"
    nodes = nodes_of(NODES)
    assert [node.gpus for node in nodes] == [4, 4, 8, 0]
    assert [node.up for node in nodes] == [True, True, False, False]
    assert (nodes[3].cores, nodes[3].memory_mb) == (64, 515_000)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("2-00:00:00", 2880), ("01:30:00", 90), ("30:00", 30), ("1-12:00:00", 2160), ("UNLIMITED", float("inf"))],
)
def test_time_limits(limit, minutes):
    assert minutes_of(limit) == minutes


def test_generic_resources():
    assert gpus_in("(null)") == 0
    assert gpus_in("gpu:2") == 2
    assert gpus_in("gpu:a100:4(S:0-1),gpu:v100:2,shard:8,gpus_of_mine:9") == 6


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (asked("b100"), "There is no partition b100; there are: cpu, a100, old."),
        (asked("old"), "The partition old is inactive."),
        (asked(minutes=2881), "timeout_min=2881 is more than the 2880"),
        (asked(gpus=9), "0 of 4 nodes have what is asked for (1 with 8 cores, 9 GPUs); the most GPUs of a node are 8."),
        (asked(nodes=4), "A job may have 3 nodes there; 4 are asked for."),
        (asked(cores=65), "0 of 4 nodes"),
    ],
)
def test_what_would_never_be_run(answers, job, said):
    bad = [of.text for of in findings(job) if not of.fine]
    assert any(said in text for text in bad), bad


def test_what_would_be_run(answers):
    found = findings(asked(nodes=2))
    assert all(of.fine for of in found)
    assert "3 of 4 nodes have what is asked for (2 with 8 cores, 4 GPUs)." in found[-1].text
    assert answers["asked"] == "sinfo --noheader --Node --partition=a100 --format=%N|%T|%c|%m|%G"
    assert "only 2 of them are up" in findings(asked(nodes=3))[-1].text
    answers["scontrol"] = SMALL
    assert "partition main is up" in findings(asked(None))[0].text


def test_a_cluster_that_does_not_answer_forbids_nothing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    (only,) = findings(asked())
    assert only.fine
    assert "does not answer" in only.text


def test_a_plan_for_slurm_submits_nothing_and_fails_where_slurm_would(answers, tmp_path, monkeypatch, capsys):
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\ntouch submitted\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    before = set(tmp_path.rglob("*"))
    command = [
        "model=tiny", "data=toy", "train.max_steps=2", "data.eval_pairs=8", "plan_only=true", "hydra/launcher=slurm",
        "hydra.launcher.partition=a100", "hydra.launcher.gpus_per_node=4",
    ]  # fmt: skip
    assert main(command) == 0
    page = capsys.readouterr().out
    assert "on cuda, 4 in all" in page
    assert "Whether it fits is not known" in page
    assert "The partition a100 is up." in page
    assert main([*command, "hydra.launcher.nodes=9"]) == 1
    assert "No: A job may have 3 nodes there" in capsys.readouterr().out
    cpu = [*command, "hydra.launcher.partition=cpu", "hydra.launcher.gpus_per_node=0", "hydra.launcher.mem_gb=0.001"]
    answers["sinfo"] = "c1|idle|64|515000|(null)\n"
    assert main(cpu) == 1
    assert "It does not fit." in capsys.readouterr().out
    assert set(tmp_path.rglob("*")) == before
