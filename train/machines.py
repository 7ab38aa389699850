"""The machines that train together, and the command that starts the ranks of each.

Nothing is scheduled here. Machines meet at an address and a port by torch's c10d rendezvous: inside
a Slurm allocation `srun` starts all of them from its first machine; elsewhere each is started by
whoever starts machines, knows its own number (`train.machine_rank`) and runs `join`, except the
first, which prepares.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from core.errors import UserError
from core.files import write_atomic
from train.config import DpoConfig, TrainConfig
from train.settings.machine import processes

PORT = 29500
"""Where machines meet unless the recipe says otherwise (torchrun's own default)."""

MEETING = 1800
"""Seconds that a machine waits for the others: one may still be pulling an image."""

OPEN = "open.json"
"""The file in OUT/scratch that tells the other machines that the first one starts its ranks."""


def command(config: TrainConfig, out: Path, *, machine_rank: int = 0) -> list[str]:
    """The command that machine `machine_rank` runs to train OUT/train.json; the machines meet at
    `config.main_process_ip`, which is machine 0.

    Several machines need the same OUT on a shared file system, and one command each.
    """
    port = config.main_process_port or (PORT if config.num_machines > 1 else 0)  # 0: a free one
    head, tail = _parts(config, out, port)
    if config.num_machines > 1:
        head += ["--main_process_ip", config.main_process_ip or "ADDRESS_OF_MACHINE_0"]
        head += ["--machine_rank", str(machine_rank)]
        head += ["--rdzv_conf", _meeting("1" if machine_rank == 0 else "0")]
    return [*head, *tail]


def command_here(config: TrainConfig, out: Path) -> list[str]:
    """The command that starts the ranks from this machine: its own, or by srun those of the whole
    allocation. Raises UserError where several machines are asked for and this one does not know
    its number or the first one's address, or where the allocation is of another size."""
    if config.num_machines == 1:
        return command(config, out)
    if config.machine_rank is not None:
        return command(config, out, machine_rank=config.machine_rank)
    if "SLURM_JOB_ID" not in os.environ:
        ranks = range(config.num_machines)
        commands = [shlex.join(command(config, out, machine_rank=rank)) for rank in ranks]
        raise UserError(
            f"{out} is prepared for {config.num_machines} machines; start one of these commands on "
            "each, with the same file system, and run this again when they have ended "
            "(`magpie launch` writes scripts that do):\n" + "\n".join(commands)
        )
    return _by_srun(config, out)


def _by_srun(config: TrainConfig, out: Path) -> list[str]:
    """One launcher on each node of this allocation; each finds its number when it is there."""
    count = config.num_machines
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
    if nodes != count:
        raise UserError(
            f"train.num_machines is {count} and this Slurm job has {nodes} node(s); "
            f"ask for --nodes={count}, or say train.num_machines={nodes}."
        )
    head, tail = _parts(config, out, config.main_process_port or _free_port())
    head += ["--main_process_ip", config.main_process_ip or _first_node()]
    # Double quotes: the number is read on each node, not here.
    each = f'--machine_rank "$SLURM_PROCID" --rdzv_conf "{_meeting("$((SLURM_PROCID == 0))")}"'
    script = f"exec {shlex.join(head)} {each} {shlex.join(tail)}"
    srun = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        srun.append(f"--cpus-per-task={cpus}")  # srun takes it over from no job since Slurm 22.05
    return [*srun, "--kill-on-bad-exit=1", "--label", "sh", "-c", script]


def _parts(config: TrainConfig, out: Path, port: int) -> tuple[list[str], list[str]]:
    """The command up to what tells machines apart, and from there on."""
    launcher = "-m accelerate.commands.launch --use_deepspeed --mixed_precision no"
    head = [sys.executable, *launcher.split(), "--dynamo_backend", "no"]
    head += ["--num_processes", str(processes(config))]
    head += ["--num_machines", str(config.num_machines)]
    if config.num_machines > 1:
        head += ["--deepspeed_multinode_launcher", "standard", "--rdzv_backend", "c10d"]
    head += ["--main_process_port", str(port)]
    module = "train.dpo" if isinstance(config, DpoConfig) else "train.sft"
    return head, ["-m", module, str(out)]


def _meeting(is_host: str) -> str:
    """Settings of the rendezvous. Only the first machine opens the port; torch would guess it from
    names, which a cluster's second network or two containers of one machine mislead."""
    return f"is_host={is_host},join_timeout={MEETING},read_timeout={MEETING}"


def _first_node() -> str:
    """Name of the first node of this allocation, by which the others reach it."""
    listed = os.environ.get("SLURM_JOB_NODELIST", "")
    if shutil.which("scontrol"):
        asked = ["scontrol", "show", "hostnames", listed]
        found = subprocess.run(asked, capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.split():
            return _address(found.stdout.split()[0])
    return socket.gethostname()


def _address(node: str) -> str:
    """The name that other nodes resolve: the node's, or this host's where Slurm calls it something
    that is no host name (NodeName differs from NodeHostname)."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        return socket.gethostname()
    return node


def _free_port() -> int:
    """A port that is free here; several jobs may share a machine."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def opened(out: Path) -> None:
    """Tell the other machines that the ranks of the first start now."""
    write_atomic(out / "scratch" / OPEN, json.dumps({"host": socket.gethostname()}))


def closed(out: Path) -> None:
    """Tell the other machines that the ranks of the first do not run (any more)."""
    (out / "scratch" / OPEN).unlink(missing_ok=True)


def await_opening(out: Path, say: Callable[[str], None], *, seconds: float = 86_400) -> bool:
    """Wait on another machine than the first until that one starts its ranks; False where it does
    not need to, because the training is exported. Raises UserError where it has not within
    `seconds`."""
    stop = time.monotonic() + seconds
    told = seen = False
    while not (out / "scratch" / OPEN).exists():
        if (out / "checkpoint").is_dir() or (seen and not out.exists()):
            return False
        seen = out.exists()
        if time.monotonic() > stop:
            raise UserError(
                f"machine 0 has not begun to train {out} within {seconds:.0f} s; see its log, and "
                "whether both see the same file system."
            )
        if not told:
            say(f"waiting for machine 0 to prepare {out}")
            told = True
        time.sleep(min(2.0, seconds))
    return True
