"""A real Slurm of two nodes on this machine, for tests: munged, slurmctld and two slurmd of their
own, in a folder of their own.

Own configuration (SLURM_CONF), own ports, own munge key and socket, so a Slurm that runs on this
machine is not touched. Every process is started with this SLURM_CONF in its environment (jobs
inherit it), which is how all of them are found and ended again, also after a failure.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

import psutil

from tests.waiting import GUARD, until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")


def why_not() -> str | None:
    """Why no Slurm can be started here, or None."""
    missing = [name for name in PROGRAMS if _find(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "a Slurm of one's own is started by root only"


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class SlurmCluster:
    """Two nodes, n1 and n2, of one CPU each; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> SlurmCluster:
        try:
            self._configure()
            self._start(
                "munged",
                "--foreground",
                "--force",
                f"--key-file={self.folder / 'munge.key'}",
                f"--socket={self.folder / 'munge.socket'}",
                f"--pid-file={self.folder / 'munged.pid'}",
                f"--seed-file={self.folder / 'munged.seed'}",
                "--num-threads=2",
                f"--log-file={self.folder / 'munged.log'}",
            )
            until(lambda: (self.folder / "munge.socket").exists(), "munged's socket")
            self._start("slurmctld", "-D", "-c")
            self.start_node("n1")
            self.start_node("n2")
            until(
                lambda: self.states() == {"n1": "idle", "n2": "idle"},
                f"both nodes (logs in {self.folder})",
            )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _configure(self) -> None:
        host = socket.gethostname()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        controller, first, second = _free_ports(3)
        # cred_expire: a requeued job waits until its old credential is void (120 s by default); the
        # timeouts make a dead node known soon.
        self.conf.write_text(
            f"""ClusterName=magpie-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder / "munge.socket"},cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000,batch_sched_delay=0,defer_batch
ReturnToService=2
SlurmdTimeout=5
BatchStartTimeout=60
MessageTimeout=60
KillWait=2
MinJobAge=3600
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={self.folder / "state"}
SlurmdSpoolDir={self.folder / "spool-%n"}
SlurmctldPidFile={self.folder / "slurmctld.pid"}
SlurmdPidFile={self.folder / "slurmd-%n.pid"}
SlurmctldLogFile={self.folder / "slurmctld.log"}
SlurmdLogFile={self.folder / "slurmd-%n.log"}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory=2000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
        )
        (self.folder / "state").mkdir()

    def _start(self, name: str, *arguments: str, key: str = "") -> None:
        program = _find(name)
        assert program is not None
        log = (self.folder / f"{key or name}.out").open("ab")
        self.daemons[key or name] = subprocess.Popen(
            [program, *arguments],
            env=self.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def start_node(self, name: str) -> None:
        """Start a node's slurmd (again)."""
        self._start("slurmd", "-D", "-N", name, key=name)

    def lose_node(self, name: str) -> None:
        """A node breaks down: its slurmd and everything that runs on it is gone at once, and nobody
        is told."""
        jobs = [p for p in self._processes() if _environment(p).get("SLURMD_NODENAME") == name]
        steps = [
            a for p in jobs for a in _ancestors(p) if a.name().startswith("slurmstepd")
        ]  # they would report how their job ended: first
        for process in [psutil.Process(self.daemons[name].pid), *steps, *jobs]:
            _kill(process)
        self.daemons[name].wait(timeout=GUARD)

    def command(self, *arguments: str) -> str:
        """Output of a Slurm command on this cluster."""
        found = subprocess.run(
            arguments, env=self.environment, capture_output=True, text=True, timeout=30
        )
        return found.stdout if found.returncode == 0 else ""

    def states(self) -> dict[str, str]:
        """State of each node, as sinfo prints it."""
        return dict(
            line.split() for line in self.command("sinfo", "-h", "-N", "-o", "%N %t").splitlines()
        )

    def jobs(self) -> dict[str, tuple[str, str]]:
        """State and reason of every job (each array task by itself) that Slurm still knows."""
        lines = self.command("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r").splitlines()
        return {parts[0]: (parts[1], parts[2]) for parts in (line.split("|") for line in lines)}

    def wait(self) -> dict[str, tuple[str, str]]:
        """All jobs, once every one has ended."""
        ended = {
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
            "NODE_FAIL",
            "BOOT_FAIL",
            "OUT_OF_MEMORY",
            "DEADLINE",
            "PREEMPTED",
        }
        found: dict[str, tuple[str, str]] = {}

        def done() -> bool:
            found.update(self.jobs())
            return bool(found) and all(state in ended for state, _ in found.values())

        until(done, f"the jobs ({self.folder})")
        return found

    def restarts(self) -> int:
        """How many jobs were started again."""
        return sum(
            int(word.partition("=")[2])
            for word in self.command("scontrol", "show", "job").split()
            if word.startswith("Restarts=")
        )

    def logs(self, store: Path) -> str:
        """The ends of what the jobs wrote, for a test that failed."""
        return "\n".join(
            f"{p}:\n{p.read_text()[-2000:]}" for p in sorted(store.rglob("slurm_logs/*.out"))
        )

    def _processes(self) -> list[psutil.Process]:
        mine = str(self.conf)
        return [
            p
            for p in psutil.process_iter()
            if p.pid != os.getpid() and _environment(p).get("SLURM_CONF") == mine
        ]

    def close(self) -> None:
        """End every process of this cluster, jobs included."""
        for _ in range(10):
            found = self._processes()
            if not found:
                break
            for process in found:
                _kill(process)
            psutil.wait_procs(found, timeout=2)
        for daemon in self.daemons.values():
            daemon.wait(timeout=GUARD)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


def _ancestors(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.Error:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
