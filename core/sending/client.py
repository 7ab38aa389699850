"""Sending requests: an asyncio loop in a background thread that keeps servers full, retries, and
restarts our own servers.

aiohttp, not the openai client: that costs 4 to 5 ms of CPU a call (measured on two cores), this
under 1 ms.
"""

from __future__ import annotations

import asyncio
import json
import queue
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from core.wire import FollowUp, Reply, Request, Target

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from core.sending.account import Account

ATTEMPTS = 6
"""Calls made for one request before it counts as failed."""

BACKOFF = (0.5, 30.0)
"""Seconds: scale and ceiling of the random exponential wait between attempts."""

RESTARTS = 3
"""How often one stream restarts one of our own servers before it gives up."""

KEEP_ALIVE = 4.0
"""Seconds an idle connection is kept: less than uvicorn's 5, so that no request meets a connection
that the server is just closing."""


class Transient(Exception):
    """Worth another attempt; `wait` is what the server asked for, in seconds."""

    fault: Literal["server"] = "server"

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Refused(Exception):
    """Another attempt would fail as well (400, 401, 403, 404 and their like)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.fault: Literal["access", "request"] = (
            "access" if status in (401, 403, 404) else "request"
        )


@dataclass
class _Outgoing:
    """A request on its way: the bytes to send, and how often they were sent."""

    path: str
    payload: bytes
    calls: int = 0


class Client:
    """Sends requests to `targets` from its own thread; a context manager whose exit cancels what is
    in flight."""

    def __init__(
        self,
        targets: list[Target],
        model: str,
        timeout: float,
        say: Callable[[str], None],
        account: Account | None = None,
    ) -> None:
        """`account`: with what the model's answers are bought, where they cost money."""
        import aiohttp

        self._aiohttp = aiohttp
        self._account = account
        self._targets, self._model, self._timeout, self._say = targets, model, timeout, say
        self._finished: queue.SimpleQueue[Reply | BaseException] = queue.SimpleQueue()
        # Requests on their way to the loop's thread, and whether it was told of them: one call
        # wakes it for all that came since the last.
        self._handed: deque[Request] = deque()
        self._told = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._restarting = {target: asyncio.Lock() for target in targets}
        self._started, self._abandon = threading.Event(), threading.Event()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main()), name="endpoint", daemon=True
        )

    def __enter__(self) -> Client:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._abandon.set()
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def stream(
        self,
        requests: Iterator[Request],
        limit: int,
        then: FollowUp | None = None,
        *,
        ahead: bool = True,
    ) -> Iterator[Reply]:
        """Replies as they finish, at most `limit` requests in flight; `then` as in
        `Endpoint.stream`.

        The servers stay full while the caller works on a reply: what finished meanwhile makes room
        for new requests before the next reply is yielded, until `limit` replies wait for the
        caller; not so without `ahead`, where those that wait count as in flight.
        """
        ready: deque[Reply] = deque()
        in_flight = 0
        while True:
            while in_flight and (not ready or not self._finished.empty()):
                reply = self._finished.get()
                if isinstance(reply, BaseException):
                    raise reply
                following = then(reply) if then else None
                if following is not None:
                    self._send(following)
                    continue
                ready.append(reply)
                in_flight -= 1
            room = limit - in_flight if len(ready) < limit else 0
            if not ahead:
                room = limit - in_flight - len(ready)
            for request in islice(requests, room):
                self._send(request)
                in_flight += 1
            if ready:
                reply = ready.popleft()
                yield replace(reply, behind=len(ready))
            elif not in_flight:
                return

    def _send(self, request: Request) -> None:
        self._handed.append(request)
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        """Start what was handed over; in the loop's thread."""
        self._told = False  # before the look, so that what comes after it is told of
        while self._handed:
            task = self._loop.create_task(self._deliver(self._handed.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, request: Request) -> None:
        """Put what became of a request, or the error that ended it, where the caller waits."""
        try:
            self._finished.put(await self._answer(request))
        except Exception as error:
            self._finished.put(error)

    async def _main(self) -> None:
        """Hold the session open until the client closes, then cancel what is in flight."""
        self._loop = asyncio.get_running_loop()
        local = re.compile(r"https?://(127\.|localhost[:/]|\[::1\])")
        remote = not all(local.match(target.address + "/") for target in self._targets)
        async with self._aiohttp.ClientSession(
            connector=self._aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            timeout=self._aiohttp.ClientTimeout(total=self._timeout),
            # a proxy of the environment is for other machines, never for loopback
            trust_env=remote,
        ) as self._session:
            self._started.set()
            await self._closing.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, request: Request) -> Reply:
        """The reply to a request; one that is paid for is taken from the account, or recorded
        there."""
        account = self._account
        if account is None:
            return await self._called(request)
        known = account.recall(request)
        if known is not None:
            return Reply(request.key, known, attempts=0)
        try:
            reply = await self._called(request)
            if reply.body is not None:
                account.record(request, reply.body)
            return reply
        finally:
            account.release(request)

    async def _called(self, request: Request) -> Reply:
        """Call until there is a good body, the server refuses, or the attempts are used up."""
        payload = json.dumps({"model": self._model, **request.body}).encode()
        outgoing = _Outgoing(request.path, payload)
        failure: Transient | Refused
        for attempt in range(ATTEMPTS):
            try:
                body = await self._attempt(outgoing)
                return Reply(request.key, body, attempts=outgoing.calls)
            except Refused as error:
                failure = error
                break
            except Transient as error:
                failure = error
            if attempt + 1 < ATTEMPTS:
                await asyncio.sleep(_pause(failure, attempt))
        return Reply(request.key, None, str(failure), outgoing.calls, failure.fault)

    async def _attempt(self, outgoing: _Outgoing) -> dict[str, Any]:
        """The body of a reply. A dead server is not the request's fault: once it is restarted the
        request goes out again, and no attempt is used up."""
        while True:
            target = await self._pick()
            generation = target.server.generation if target.server else 0
            target.in_flight += 1
            outgoing.calls += 1
            try:
                return await self._post(target, outgoing)
            except Transient:
                if not await self._revived(target, generation):
                    raise
            finally:
                target.in_flight -= 1

    async def _pick(self) -> Target:
        """The target with the fewest requests in flight among those that are up; while none is,
        wait for one."""
        up = [target for target in self._targets if not self._restarting[target].locked()]
        target = min(up or self._targets, key=lambda t: t.in_flight)
        if not up:
            async with self._restarting[target]:
                pass
        return target

    async def _revived(self, target: Target, seen: int) -> bool:
        """True when an own server had died and answers again; false when it is well, or is not
        ours."""
        if target.server is None:
            return False
        limit = target.first_generation + RESTARTS
        async with self._restarting[target]:
            return await asyncio.to_thread(
                target.server.revive, seen, limit, self._say, self._abandon
            )

    async def _post(self, target: Target, outgoing: _Outgoing) -> dict[str, Any]:
        """The body of one reply. Raises Transient or Refused where there is no good one."""
        headers = {"Content-Type": "application/json"}
        if target.key:
            headers["Authorization"] = f"Bearer {target.key}"
        try:
            async with self._session.post(
                target.address + outgoing.path,
                data=outgoing.payload,
                headers=headers,
                allow_redirects=False,
            ) as response:
                raw = await response.read()
        except TimeoutError as error:
            raise Transient(f"no answer within {self._timeout:g} s") from error
        except (self._aiohttp.ClientError, OSError) as error:
            kind = type(error).__name__
            raise Transient(f"the connection failed or broke off ({kind})") from error
        return _body(response, raw, outgoing.path, target.key)


def _body(response: ClientResponse, raw: bytes, path: str, key: str | None) -> dict[str, Any]:
    """What a response holds. Raises Transient or Refused where that is no good body."""
    status = response.status
    if status in (408, 425, 429) or status >= 500:
        wait = _seconds(response.headers.get("Retry-After"))
        raise Transient(f"HTTP {status}: {_excerpt(raw, key)}", wait)
    if status != 200:
        raise Refused(f"HTTP {status}: {_excerpt(raw, key)}{_hint(status, path)}", status)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Transient(f"the body is not JSON: {_excerpt(raw, key)}") from error
    if not isinstance(body, dict) or not _well_formed(path, body):
        excerpt = _excerpt(raw, key)
        raise Transient(f"the body has not the form that {path} promises: {excerpt}")
    return body


def _hint(status: int, path: str) -> str:
    """What to think of where a service has no such path."""
    if path != "/v1/completions" or status not in (404, 405):
        return ""
    return (
        " (is it a service that only chats? Generating instructions needs raw completions of token "
        "ids; answers and tags go through chats with `api: chat`)"
    )


def _well_formed(path: str, body: dict[str, Any]) -> bool:
    """Completions hold `choices` with text or a message, the pooling kind holds `data`; of other
    paths only an object is expected."""
    if path.endswith("/chat/completions"):
        return _hold(body.get("choices"), "message", dict)
    if path.endswith("/completions"):
        return _hold(body.get("choices"), "text", str)
    if path.endswith(("/embeddings", "/pooling", "/classify", "/score")):
        return isinstance(body.get("data"), list) and bool(body["data"])
    return True


def _hold(choices: Any, name: str, kind: type) -> bool:
    """Whether there are choices, each an object with a field of this kind."""
    if not isinstance(choices, list) or not choices:
        return False
    return all(isinstance(c, dict) and isinstance(c.get(name), kind) for c in choices)


def _excerpt(raw: bytes, key: str | None) -> str:
    """What the server says, on one line of at most 300 characters, without the key (some servers
    repeat it when they refuse it)."""
    text = raw.decode(errors="replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    for name in ("error", "message"):
        if isinstance(said, dict):
            said = said.get(name, said)
    text = str(said)
    if key:
        text = text.replace(key, "***")
    return re.sub(r"[\x00-\x1f\x7f]+|\s+", " ", text)[:300].strip() or "(empty)"


def _seconds(asked: str | None) -> float:
    """A Retry-After header (seconds or a date) in seconds; at most an hour, 0 where it says nothing
    readable."""
    if not asked:
        return 0.0
    try:
        wait = float(asked)
    except ValueError:
        try:
            wait = parsedate_to_datetime(asked).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, wait), 3600.0)  # in this order, NaN is 0


def _pause(failure: Transient, attempt: int) -> float:
    """Seconds before the next attempt: random up to a bound that doubles, so that requests which
    failed together do not come back together; at least what the server asked for."""
    scale, ceiling = BACKOFF
    return max(failure.wait, random.uniform(0, min(ceiling, scale * 2**attempt)))
