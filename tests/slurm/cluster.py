"""A Slurm of one's own on one machine: two nodes that are both this one, no database, no cgroups, no systemd."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "scontrol", "squeue", "slurmctld", "slurmd", "munged")
# where daemons lie on systems that keep them from users
SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
NODES = ("n1", "n2")
CORES = 4  # each node claims so many, whatever the machine has

# Jobs in `main` are preempted by those in `high`: SIGTERM, and 15 seconds later they are put back into the queue.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=3600
ReturnToService=2
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} CoresPerSocket={cores}"


def missing_programs() -> list[str]:
    """What a cluster needs and this machine has not."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]


class Cluster:
    """Starts in an empty folder; `environment` lets a process find it.

    In that environment `sacct` fails, as where there is no accounting, and leaves the file `sacct_was_called`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        (programs / "sacct").write_text(f"#!/bin/sh\ntouch {folder}/sacct_was_called\nexit 1\n")
        (programs / "sacct").chmod(stat.S_IRWXU)
        self.environment = os.environ | {
            "PATH": f"{programs}{os.pathsep}{SEARCH}",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle."""
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(mode=0o700)
        (self.folder / "munge" / "key").write_bytes(os.urandom(1024))
        (self.folder / "munge" / "key").chmod(0o400)
        host, (controller, *ports) = socket.gethostname().partition(".")[0], free_ports(1 + len(NODES))
        nodes = [
            NODE.format(name=name, host=host, port=port, cores=CORES) for name, port in zip(NODES, ports, strict=True)
        ]
        text = CONFIGURATION.format(
            host=host, controller=controller, user=user_name(), folder=self.folder, nodes="\n".join(nodes)
        )
        (self.folder / "slurm.conf").write_text(text)
        munge = self.folder / "munge"
        self.run(
            "munged", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key", f"--pid-file={munge}/pid",
            f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self.run("slurmctld", "-c")
        for name in NODES:
            self.run("slurmd", "-c", "-N", name)
        deadline = time.monotonic() + 60
        while self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split() != list(NODES):
            if time.monotonic() > deadline:
                raise RuntimeError("\n".join(file.read_text()[-2000:] for file in self.folder.glob("*.log")))
            time.sleep(0.5)

    def stop(self) -> None:
        """End all jobs and the daemons."""
        self.run("scancel", "--user", user_name(), "--signal=KILL", "--full", check=False)
        self.run("scancel", "--user", user_name(), check=False)
        for file in [*(self.folder / f"{name}.pid" for name in NODES), self.folder / "slurmctld.pid"]:
            end(file)
        end(self.folder / "munge" / "pid")

    def run(self, *command: str, check: bool = True) -> str:
        """The output of a command."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder
        )
        assert done.returncode == 0 or not check, (command, done.stderr)
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What Slurm knows of a job, also of one that has ended."""
        return dict(
            field.split("=", 1) for field in self.run("scontrol", "-o", "show", "job", job_id).split() if "=" in field
        )

    def jobs(self) -> list[str]:
        """The jobs that have not ended."""
        return self.run("squeue", "-h", "--array", "-o", "%i").split()


def end(file: Path) -> None:
    """End the process whose number a file holds, if both are there."""
    if not file.exists():
        return
    pid = int(file.read_text())
    try:
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def user_name() -> str:
    """Who runs this."""
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name
