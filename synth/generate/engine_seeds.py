"""Seeds that servers start with, where requests carry none of their own (`synth.seeds: none`).

vLLM samples a request that has a seed one by one, off its fast path. Without, what is drawn follows
from the seed that the engine started with: two servers started alike drew 64 of 64 identical
instructions. So every server (each replica, each task of a cluster, each restart) starts with a
seed of its own, which is written down in the store before the server starts, and never given again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from functools import partial
from pathlib import Path

from filelock import FileLock

from core.servers import Servers
from synth.config.synthesis import SynthConfig

FILE = "engine_seeds.jsonl"
"""In the store's folder, one line a start of a server: {"seed", "model", "host", "process" (of the
run), "time" (Unix)}."""

HIGHEST = 2**31 - 1


def seeded(config: SynthConfig, servers: Servers, root: Path) -> bool:
    """Whether a request for a user's message carries a seed of its own. Where it does not, the
    servers that this run starts from here on get seeds of theirs, recorded under the store's folder
    `root`; one that has none is started again."""
    if config.seeds == "none":
        servers.engine_seeds = partial(engine_seed, root)
    return config.seeds != "none"


def engine_seed(root: Path, model: str) -> int:
    """The seed of a server of `model` that is about to start: one that no server of the store was
    ever started with, written down first. Safe beside other tasks."""
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{FILE}.lock"), (root / FILE).open("a+") as handle:
        handle.seek(0)
        lines = handle.read()
        used = set(re.findall(r'"seed": (\d+)', lines))
        seed = secrets.randbelow(HIGHEST) + 1
        while str(seed) in used:
            seed = secrets.randbelow(HIGHEST) + 1
        where = {"model": model, "host": socket.gethostname(), "process": os.getpid()}
        line = json.dumps({"seed": seed, **where, "time": round(time.time(), 3)})
        if lines and not lines.endswith("\n"):  # torn by a machine that lost its power
            handle.write("\n")
        handle.write(line + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    return seed
