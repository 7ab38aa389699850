"""Models behind OpenAI-compatible servers: our own vLLM replicas, or servers that the recipe names
by URL.

    with Servers(log, run / "logs") as servers:
        endpoint = servers.serve(ServerSpec(model=teacher.path, args={"max_model_len": 2048}))
        for reply in endpoint.stream(Request(row_id, {"prompt": token_ids}) for ...):
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from core.sending.client import Client
from core.serving.vllm_server import Seeds, VllmServer, make_servers, on_all_gpus
from core.serving.weights import local
from core.wire import FollowUp, Reply, Request, ServerSpec, Target

if TYPE_CHECKING:
    from core.sending.account import Account
    from core.sending.purse import Ledger
    from core.tracking import Log

SILENT = 20
"""Requests in a row without an answer after which a server counts as gone."""


class Servers:
    """The servers of one run. Own servers start when the first request is sent; one model at a time
    is kept alive."""

    def __init__(self, log: Log, logs: Path) -> None:
        self.say = log.say
        self._logs = logs
        self._spec: ServerSpec | None = None
        self._live: list[VllmServer] = []
        self._streams = 0
        self.accounts: dict[tuple[object, ...], Account] = {}
        """What this run buys of hosted models."""
        self.ledger: Ledger | None = None
        """Where this run writes down what its judges cost; None: it remembers nothing."""
        self.retry = False
        """Whether what a judge failed at for good is asked again too."""
        self.engine_seeds: Seeds | None = None
        """Where set, every start of an own server gets a seed from here."""

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def serve(self, spec: ServerSpec, account: Account | None = None) -> Endpoint:
        """The endpoint of a model. Nothing starts yet: the first request starts its servers and
        ends those of another model. `account`: with what a hosted model's answers are bought."""
        return Endpoint(self, on_all_gpus(spec), account)

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
            key = _key(spec)
            yield [Target(url, key) for url in spec.urls]
            return
        unseeded = self.engine_seeds is not None and not all(s.seeded for s in self._live)
        same = self._spec is not None and _serving(self._spec) == _serving(spec)
        if same and not unseeded:
            self._revive()
        else:
            self._start(spec)
        self._streams += 1
        try:
            yield [Target(key=s.key, server=s, first_generation=s.generation) for s in self._live]
        finally:
            self._streams -= 1

    def _revive(self) -> None:
        """Start again what died since it was last used."""
        for server in self._live:
            now = server.generation
            server.revive(now, now + 1, self.say, threading.Event())

    def _start(self, spec: ServerSpec) -> None:
        """Swap the live servers for those of `spec`, and wait until they answer."""
        if self._streams:
            raise RuntimeError(
                "a stream is still open on another model's server: "
                f"finish it before sending to {spec.model}"
            )
        self.release()
        local(spec, self.say)  # downloaded before anything starts
        name = re.sub(r"[^\w.-]+", "-", Path(spec.model).name) or "model"
        self._live = make_servers(
            spec, lambda replica: self._logs / f"vllm-{name}-{replica}.log", self.engine_seeds
        )
        self._spec = spec
        log = self._live[0].log
        self.say(f"starting vLLM for {spec.model}, {spec.replicas} replica(s); log: {log}")
        started = time.monotonic()
        try:
            for server in self._live:
                server.start()
            for server in self._live:
                server.wait_ready()
        except BaseException:
            self.release()
            raise
        self.say(f"vLLM is ready after {time.monotonic() - started:.0f} s")


def _key(spec: ServerSpec) -> str | None:
    """The key for the recipe's own servers. Raises UserError when its variable is not set."""
    if not spec.api_key_env:
        return None
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {spec.api_key_env} (api_key_env of {spec.model}) "
            "is not set; export the key in it."
        )
    return key


def _serving(spec: ServerSpec) -> ServerSpec:
    """What another server would be needed for; the rest only concerns the sending side."""
    return ServerSpec(model=spec.model, replicas=spec.replicas, args=spec.args, env=spec.env)


class Endpoint:
    """A model to send requests to; light to hold, and valid as long as its `Servers`."""

    def __init__(self, servers: Servers, spec: ServerSpec, account: Account | None = None) -> None:
        self._servers = servers
        self.spec, self.account = spec, account

    def stream(
        self,
        requests: Iterable[Request],
        then: FollowUp | None = None,
        *,
        ahead: bool = True,
    ) -> Iterator[Reply]:
        """Send the requests and yield each one's reply once, as they finish (any order).

        `then` makes chains without a barrier: a reply for which it returns a request is not
        yielded; that request goes out at once in its place (the next turn of a conversation, the
        rest of a text whose first token was chosen). It is called in the caller's thread, once a
        reply.

        At most `spec.in_flight` are in flight; `requests` is pulled in the caller's thread, only
        when there is room. 429, 5xx, timeouts, lost connections and broken bodies are sent again
        with back-off (Retry-After honoured); what still fails, and any other 4xx, comes back with
        `error`. An own server that dies is restarted and what was in flight is sent again. Stop
        early by closing the generator. Raises UserError when a server cannot be started, or dies
        again and again.

        `ahead`: whether new requests go out while finished replies wait for the caller, as servers
        of our own like it; without, at most `spec.in_flight` replies are not in the caller's hands,
        and a kill loses no more.

        Of a hosted model with an account, no request goes out that could pass the budget: what is
        in flight then is waited for and yielded, and UserError is raised.
        """
        pending = iter(requests)
        first = next(pending, None)
        if first is None:
            return
        spec, servers, account = self.spec, self._servers, self.account
        pending = itertools.chain([first], pending)
        with (
            servers.targets(spec) as targets,
            account.open() if account else nullcontext(),
            Client(targets, spec.request_model, spec.timeout, servers.say, account) as client,
        ):
            if account is None:
                yield from client.stream(pending, spec.in_flight, then, ahead=ahead)
                return
            more = True
            while more:
                affordable = account.affordable(pending)
                yield from client.stream(affordable, spec.in_flight, then, ahead=ahead)
                more = account.more()

    def answers(self, requests: Iterable[Request], then: FollowUp | None = None) -> Iterator[Reply]:
        """As `stream`, for replies that are kept for good: what is wrong with the server is never
        taken for a failure of the row.

        A server's fault is held back until another request has been answered after it (then it was
        that request's); UserError when access is refused, when SILENT requests in a row got no
        answer, or when the last ones did not. What was yielded is good, the rest is to be asked
        again.
        """
        unanswered: list[Reply] = []
        answered = False
        for reply in self.stream(requests, then):
            if reply.fault == "access":
                raise self._gone(reply)
            if reply.fault == "server":
                unanswered.append(reply)
                if len(unanswered) >= SILENT:
                    raise self._gone(reply)
                continue
            yield from unanswered
            unanswered, answered = [], True
            yield reply
        # A single one that fails after others were answered is that request's own.
        if unanswered and not (answered and len(unanswered) == 1):
            raise self._gone(unanswered[-1])
        yield from unanswered

    def _gone(self, reply: Reply) -> UserError:
        return UserError(
            f"{self.spec.model}: {reply.error}; nothing was stored of what it did not answer: "
            "mend that, and run again."
        )
