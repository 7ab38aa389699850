"""A process that has imported what `magpie run` imports, and forks a harness for every line that it
reads: hundreds of harnesses then cost a fork each. Each is a process of its own, in a session of
its own, with an environment and output of its own; SIGKILL and the rest hit it as any other.

A line in is JSON {id, argv, env, unset, log, own, trainer}; out come {id, pid}, and {id, code} when
it has ended. `own`: models are served by tests.campaigns.served in place of vLLM. `trainer`:
trainings are those of tests.campaigns.tiny_trainer.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

PRELOADED = (
    "aiohttp",
    "pyarrow.parquet",
    "tokenizers",
    "transformers",
    "scipy.stats",
    "recipes.cli",
    "recipes.schema",
    "recipes.stages.graph",
    "recipes.report.page",
    "train.launch",
    "core.servers",
)

MEMBERS = (("trl", "SFTConfig"), ("peft", "LoraConfig"), ("transformers", "AutoTokenizer"))
"""What is imported when it is asked for."""


def main() -> int:
    """Fork what is asked for, until there is nothing more to read; in a fork, be the harness."""
    for name in PRELOADED:
        importlib.import_module(name)
    for name, member in MEMBERS:
        getattr(importlib.import_module(name), member)
    running: dict[int, str] = {}
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        if "wait" in asked:
            pid = asked["wait"]
            _, status = os.waitpid(pid, 0)
            _say({"id": running.pop(pid), "code": os.waitstatus_to_exitcode(status)})
            continue
        pid = os.fork()
        if pid == 0:
            return harness(asked)
        running[pid] = asked["id"]
        _say({"id": asked["id"], "pid": pid})
    return 0


def _say(words: dict[str, Any]) -> None:
    print(json.dumps(words), flush=True)


def harness(asked: dict[str, Any]) -> int:
    """Become `magpie` with these arguments; returns its exit code."""
    os.setsid()
    assert threading.active_count() == 1, "a fork of one thread alone is whole"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(asked["env"])
    for name in asked["unset"]:
        os.environ.pop(name, None)
    tempfile.tempdir = None
    output = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, handle in ((0, nothing), (1, output), (2, output)):
        os.dup2(handle, number)
    _replace(asked)
    sys.argv = ["magpie", *asked["argv"]]
    from recipes import cli

    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def _replace(asked: dict[str, Any]) -> None:
    """Put the scripted server in the place of vLLM, and the tiny trainer in that of TRL."""
    from core.sending import client
    from core.serving import health, vllm_server
    from train import machines

    root = Path(__file__).parents[2]
    client.BACKOFF = (0.2, 2.0)
    health.HANGS = 30.0
    if asked.get("own"):
        served = ["env", "-C", str(root), sys.executable, "-m", "tests.campaigns.served"]
        vllm_server.COMMAND = served
    if asked.get("trainer"):
        machines.command_here = lambda _, out: [
            sys.executable,
            str(root / "tests" / "campaigns" / "tiny_trainer.py"),
            str(out),
        ]


if __name__ == "__main__":
    sys.exit(main())
