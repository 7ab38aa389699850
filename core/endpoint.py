"""Models behind OpenAI-compatible servers: our own vLLM replicas, or servers that the recipe names by URL.

    with Servers(log, run / "logs") as servers:
        endpoint = servers.serve(ServerSpec(model=teacher.path, args={"max_model_len": 2048}))
        for reply in endpoint.stream(Request(row_id, {"prompt": token_ids, "max_tokens": 96, "seed": 7}) for ...):
            ...

A separate process for the model frees the GPU before training starts. `LLM(data_parallel_size=k)` inside one process hangs (vLLM #22575,
#23534), so there is one server a replica.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from core.errors import UserError

if TYPE_CHECKING:
    from core.tracking import Log
    from core.vllm_server import VllmServer


class ServerSpec(BaseModel):
    """Which model to talk to, and how it is served."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Folder or hub id of the model; also the model's name in requests, unless `args.served_model_name` is given."""
    urls: tuple[str, ...] = ()
    """OpenAI-compatible servers to use, each up to but without /v1; no server is started then."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key for `urls`."""
    replicas: int = Field(1, ge=1)
    """vLLM servers to start, each on its own GPUs (tensor x pipeline x data parallel size of them)."""
    max_in_flight: int = Field(128, ge=1)
    """Requests in flight, over all replicas or URLs."""
    timeout: float = Field(600, gt=0)
    """Seconds that one attempt of one request may take."""
    args: dict[str, Any] = {}
    """vLLM engine arguments, passed verbatim, e.g. {max_model_len: 2048, tensor_parallel_size: 2, runner: pooling}."""
    env: dict[str, str] = {}
    """Environment variables for the server processes."""

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not re.match(r"https?://[^/\s]+", url):
                raise ValueError(f"'{url}' is not an http:// or https:// address")
            if re.search(r"/v1(/.*)?$", url):
                raise ValueError(f"'{url}' must end before /v1")
        return tuple(url.rstrip("/") for url in urls)

    @property
    def request_model(self) -> str:
        """The model's name as requests must give it."""
        served = self.args.get("served_model_name") or self.model
        return str(served[0]) if isinstance(served, (list, tuple)) else str(served)


@dataclass(frozen=True)
class Request:
    """One call: `key` comes back with the reply; `body` is the JSON body ("model" is filled in where absent)."""

    key: str
    body: dict[str, Any]
    path: str = "/v1/completions"


SILENT = 20
"""Requests in a row without an answer after which a server counts as gone."""


@dataclass(frozen=True)
class Reply:
    """What became of a request: the JSON `body`, or `error` in one sentence; `attempts` counts the calls made for it.

    `fault` says whose an error is: the "request"'s own (too long, malformed), the "server"'s (down, overloaded, too slow, after all attempts), or
    that of the "access" to it (wrong key or model name), which every request would meet.
    """

    key: str
    body: dict[str, Any] | None
    error: str | None = None
    attempts: int = 1
    fault: Literal["", "request", "server", "access"] = ""


@dataclass
class Target:
    """A server that requests can go to: a `url` from the recipe, or a `server` of our own, which can be restarted (at another port)."""

    url: str = ""
    key: str | None = None
    server: VllmServer | None = None
    in_flight: int = 0
    first_generation: int = 0
    """The own server's generation when the stream began: restarts are counted from there."""

    @property
    def address(self) -> str:
        """Base address of the server now."""
        return self.server.url if self.server else self.url


class Servers:
    """The servers of one run. Own servers start when the first request is sent; one model at a time is kept alive."""

    def __init__(self, log: Log, logs: Path) -> None:
        self._log = log
        self._logs = logs
        self._spec: ServerSpec | None = None
        self._live: list[VllmServer] = []
        self._streams = 0

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def serve(self, spec: ServerSpec) -> Endpoint:
        """The endpoint of a model. Nothing starts yet: the first request starts its servers and ends those of another model."""
        return Endpoint(self, spec)

    def release(self) -> None:
        """End our own servers (training needs their memory); a later request starts them again."""
        for server in self._live:
            server.close()
        self._live, self._spec = [], None

    @contextmanager
    def targets(self, spec: ServerSpec) -> Iterator[list[Target]]:
        """The servers that answer for `spec`, ready; they stay up as long as the block runs.

        Raises UserError when a server does not start or the key's variable is not set.
        """
        if spec.urls:
            key = os.environ.get(spec.api_key_env, "").strip() if spec.api_key_env else None
            if spec.api_key_env and not key:
                raise UserError(f"the environment variable {spec.api_key_env} (api_key_env of {spec.model}) is not set; export the key in it.")
            yield [Target(url, key) for url in spec.urls]
            return
        self._ensure(spec)
        self._streams += 1
        try:
            yield [Target(key=s.key, server=s, first_generation=s.generation) for s in self._live]
        finally:
            self._streams -= 1

    def _ensure(self, spec: ServerSpec) -> None:
        # What only concerns the sending side does not need another server.
        if self._spec is not None and _serving(self._spec) == _serving(spec):
            for server in self._live:  # one may have died since it was last used
                server.revive(server.generation, server.generation + 1, self._log.say, threading.Event())
            return
        if self._streams:
            raise RuntimeError(f"a stream is still open on another model's server: finish it before sending to {spec.model}")
        self.release()
        from core.vllm_server import make_servers

        name = re.sub(r"[^\w.-]+", "-", Path(spec.model).name) or "model"
        self._live = make_servers(spec.model, spec.args, spec.env, spec.replicas, lambda r: self._logs / f"vllm-{name}-{r}.log")
        self._spec = spec
        self._log.say(f"starting vLLM for {spec.model}, {spec.replicas} replica(s); log: {self._live[0].log}")
        started = time.monotonic()
        try:
            for server in self._live:
                server.start()
            for server in self._live:
                server.wait_ready()
        except BaseException:
            self.release()
            raise
        self._log.say(f"vLLM is ready after {time.monotonic() - started:.0f} s")

    def say(self, text: str) -> None:
        """One line for the person watching."""
        self._log.say(text)


def _serving(spec: ServerSpec) -> dict[str, Any]:
    return spec.model_dump(include={"model", "replicas", "args", "env"})


class Endpoint:
    """A model to send requests to; light to hold, and valid as long as its `Servers`."""

    def __init__(self, servers: Servers, spec: ServerSpec) -> None:
        self._servers = servers
        self.spec = spec

    def stream(self, requests: Iterable[Request], then: Callable[[Reply], Request | None] | None = None) -> Iterator[Reply]:
        """Send the requests and yield each one's reply once, as they finish (any order).

        `then` makes chains without a barrier: a reply for which it returns a request is not yielded; that request goes out at once in its place
        (the next turn of a conversation, the rest of a text whose first token was chosen). It is called in the caller's thread, once a reply.

        At most `max_in_flight` are in flight; `requests` is pulled in the caller's thread, only when there is room. 429, 5xx, timeouts, lost
        connections and broken bodies are sent again with back-off (Retry-After honoured); what still fails, and any other 4xx, comes
        back with `error`. An own server that dies is restarted and what was in flight is sent again. Stop early by closing the generator.
        Raises UserError when a server cannot be started, or dies again and again.
        """
        from core.client import Client

        iterator = iter(requests)
        first = next(iterator, None)
        if first is None:
            return
        limit = self.spec.max_in_flight
        with (
            self._servers.targets(self.spec) as targets,
            Client(targets, self.spec.request_model, self.spec.timeout, self._servers.say) as client,
        ):
            yield from client.stream(itertools.chain([first], iterator), limit, then)

    def answers(self, requests: Iterable[Request], then: Callable[[Reply], Request | None] | None = None) -> Iterator[Reply]:
        """As `stream`, for replies that are kept for good: what is wrong with the server is never taken for a failure of the row.

        A server's fault is held back until another request has been answered after it (then it was that request's); UserError when access is refused,
        when SILENT requests in a row got no answer, or when the last ones did not. What was yielded is good, the rest is to be asked again.
        """
        held: list[Reply] = []
        answered = False
        for reply in self.stream(requests, then):
            if reply.fault == "server":
                held.append(reply)
            elif reply.fault != "access":
                yield from held
                held, answered = [], True
                yield reply
            if reply.fault == "access" or len(held) >= SILENT:
                raise UserError(f"{self.spec.model}: {reply.error}; nothing was stored of what it did not answer: mend that, and run again.")
        if len(held) > 1 or (held and not answered):  # a single one that fails after others were answered is that request's own
            raise UserError(f"{self.spec.model}: {held[-1].error}; nothing was stored of what it did not answer: mend that, and run again.")
        yield from held

