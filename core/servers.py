"""Models behind OpenAI-compatible servers: our own vLLM replicas, or servers that the recipe names
by URL.

    with Servers(log, run / "logs") as servers:
        endpoint = servers.serve(ServerSpec(model=teacher.path, args={"max_model_len": 2048})) for
        reply in endpoint.stream(Request(row_id, {"prompt": token_ids, "max_tokens": 96, "seed": 7})
        for ...):
            ...

A separate process for the model frees the GPU before training starts. `LLM(data_parallel_size=k)`
inside one process hangs (vLLM #22575, #23534), so there is one server a replica.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.wire import Reply, Request, ServerSpec, Target

if TYPE_CHECKING:
    from core.tracking import Log
    from core.vllm_server import VllmServer


SILENT = 20
"""Requests in a row without an answer after which a server counts as gone."""


class Servers:
    """The servers of one run. Own servers start when the first request is sent; one model at a time
    is kept alive."""

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
        """The endpoint of a model. Nothing starts yet: the first request starts its servers and
        ends those of another model."""
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
                raise UserError(
                    f"the environment variable {spec.api_key_env} (api_key_env of {spec.model}) is not set; export the key in it."
                )
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
                server.revive(
                    server.generation, server.generation + 1, self._log.say, threading.Event()
                )
            return
        if self._streams:
            raise RuntimeError(
                f"a stream is still open on another model's server: finish it before sending to {spec.model}"
            )
        self.release()
        from core.vllm_server import make_servers

        name = re.sub(r"[^\w.-]+", "-", Path(spec.model).name) or "model"
        self._live = make_servers(
            spec.model,
            spec.args,
            spec.env,
            spec.replicas,
            lambda r: self._logs / f"vllm-{name}-{r}.log",
        )
        self._spec = spec
        self._log.say(
            f"starting vLLM for {spec.model}, {spec.replicas} replica(s); log: {self._live[0].log}"
        )
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

    def stream(
        self, requests: Iterable[Request], then: Callable[[Reply], Request | None] | None = None
    ) -> Iterator[Reply]:
        """Send the requests and yield each one's reply once, as they finish (any order).

        `then` makes chains without a barrier: a reply for which it returns a request is not
        yielded; that request goes out at once in its place (the next turn of a conversation, the
        rest of a text whose first token was chosen). It is called in the caller's thread, once a
        reply.

        At most `max_in_flight` are in flight; `requests` is pulled in the caller's thread, only
        when there is room. 429, 5xx, timeouts, lost connections and broken bodies are sent again
        with back-off (Retry-After honoured); what still fails, and any other 4xx, comes back with
        `error`. An own server that dies is restarted and what was in flight is sent again. Stop
        early by closing the generator. Raises UserError when a server cannot be started, or dies
        again and again.
        """
        from core.client import Client

        iterator = iter(requests)
        first = next(iterator, None)
        if first is None:
            return
        limit = self.spec.max_in_flight
        with (
            self._servers.targets(self.spec) as targets,
            Client(
                targets, self.spec.request_model, self.spec.timeout, self._servers.say
            ) as client,
        ):
            yield from client.stream(itertools.chain([first], iterator), limit, then)

    def answers(
        self, requests: Iterable[Request], then: Callable[[Reply], Request | None] | None = None
    ) -> Iterator[Reply]:
        """As `stream`, for replies that are kept for good: what is wrong with the server is never
        taken for a failure of the row.

        A server's fault is held back until another request has been answered after it (then it was
        that request's); UserError when access is refused, when SILENT requests in a row got no
        answer, or when the last ones did not. What was yielded is good, the rest is to be asked
        again.
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
                raise UserError(
                    f"{self.spec.model}: {reply.error}; nothing was stored of what it did not answer: mend that, and run again."
                )
        if len(held) > 1 or (
            held and not answered
        ):  # a single one that fails after others were answered is that request's own
            raise UserError(
                f"{self.spec.model}: {held[-1].error}; nothing was stored of what it did not answer: mend that, and run again."
            )
        yield from held
