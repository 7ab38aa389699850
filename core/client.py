"""Sending requests: an asyncio loop in a background thread that keeps servers full, retries, and
restarts our own servers.

aiohttp, not the openai client: that costs 4 to 5 ms of CPU a call (measured on two cores), this
under 1 ms.
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from core.wire import Reply, Request, Target

if TYPE_CHECKING:
    from tenacity import RetryCallState

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

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Refused(Exception):
    """Another attempt would fail as well (400, 401, 403, 404 and their like); `status` is the
    server's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Sends requests to `targets` from its own thread; a context manager whose exit cancels what is
    in flight."""

    def __init__(
        self, targets: list[Target], model: str, timeout: float, say: Callable[[str], None]
    ) -> None:
        import aiohttp

        self._aiohttp = aiohttp
        self._targets, self._model, self._timeout, self._say = targets, model, timeout, say
        self._finished: queue.SimpleQueue[Reply | BaseException] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[Reply]] = set()
        self._started, self._abandon = threading.Event(), threading.Event()
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
        then: Callable[[Reply], Request | None] | None = None,
    ) -> Iterator[Reply]:
        """Replies as they finish, at most `limit` requests in flight; `then` as in
        `Endpoint.stream`.

        The servers stay full while the caller works on a reply: what finished meanwhile makes room
        for new requests before the next reply is yielded, until `limit` replies wait for the
        caller.
        """
        ready: deque[Reply] = deque()
        in_flight, more = 0, True
        while True:
            while in_flight and (not ready or not self._finished.empty()):
                finished = self._finished.get()
                if isinstance(finished, BaseException):
                    raise finished
                following = then(finished) if then else None
                if following is not None:
                    self._loop.call_soon_threadsafe(self._launch, following)
                    continue
                ready.append(finished)
                in_flight -= 1
            while more and in_flight < limit and len(ready) < limit:
                request = next(requests, None)
                if request is None:
                    more = False
                    break
                self._loop.call_soon_threadsafe(self._launch, request)
                in_flight += 1
            if ready:
                yield ready.popleft()
            elif not in_flight:
                return

    async def _main(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._restarting = {id(target): asyncio.Lock() for target in self._targets}
        remote = not all(
            re.match(r"https?://(127\.|localhost[:/]|\[::1\])", target.address + "/")
            for target in self._targets
        )
        async with self._aiohttp.ClientSession(
            connector=self._aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            timeout=self._aiohttp.ClientTimeout(total=self._timeout),
            # a proxy of the environment is for other machines, never for loopback
            trust_env=remote,
        ) as self._session:
            self._started.set()
            await self._closing.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _launch(self, request: Request) -> None:
        task = self._loop.create_task(self._answer(request))
        self._tasks.add(task)
        task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[Reply]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._finished.put(task.exception() or task.result())

    async def _answer(self, request: Request) -> Reply:
        """Call until there is a good body, the server refuses, or the attempts are used up."""
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        payload = json.dumps({"model": self._model, **request.body}).encode()
        calls = 0

        async def call() -> dict[str, Any]:
            nonlocal calls
            while True:
                target = await self._pick()
                seen = target.server.generation if target.server else 0
                target.in_flight += 1
                calls += 1
                try:
                    return await self._post(target, request.path, payload)
                except Transient:
                    # A dead server is not the request's fault: it goes out again, and no attempt is
                    # used up.
                    if not await self._revived(target, seen):
                        raise
                finally:
                    target.in_flight -= 1

        async def call_or_fail_as_before() -> dict[str, Any]:
            if failures:
                raise failures.pop()
            return await call()

        failures: list[Transient] = []
        try:
            try:
                return Reply(request.key, await call(), None, calls)
            # tenacity costs more than the call itself, so only what failed once goes through it
            except Transient as error:
                failures.append(error)
            retrying = AsyncRetrying(
                stop=stop_after_attempt(ATTEMPTS),
                wait=_pause,
                retry=retry_if_exception_type(Transient),
                reraise=True,
            )
            return Reply(request.key, await retrying(call_or_fail_as_before), None, calls)
        except Transient as error:
            return Reply(request.key, None, str(error), calls, "server")
        except Refused as error:
            return Reply(
                request.key,
                None,
                str(error),
                calls,
                "access" if error.status in (401, 403, 404) else "request",
            )

    async def _pick(self) -> Target:
        """The target with the fewest requests in flight among those that are up; while none is,
        wait for one."""
        up = [target for target in self._targets if not self._restarting[id(target)].locked()]
        target = min(up or self._targets, key=lambda t: t.in_flight)
        if not up:
            async with self._restarting[id(target)]:
                pass
        return target

    async def _revived(self, target: Target, seen: int) -> bool:
        """True when an own server had died and answers again; false when it is well, or is not
        ours."""
        server = target.server
        if server is None:
            return False
        async with self._restarting[id(target)]:
            return await asyncio.to_thread(
                server.revive, seen, target.first_generation + RESTARTS, self._say, self._abandon
            )

    async def _post(self, target: Target, path: str, payload: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {target.key}"} if target.key else {}
        )
        try:
            async with self._session.post(
                target.address + path, data=payload, headers=headers, allow_redirects=False
            ) as response:
                raw, status, asked = (
                    await response.read(),
                    response.status,
                    response.headers.get("Retry-After"),
                )
        except TimeoutError as error:
            raise Transient(f"no answer within {self._timeout:g} s") from error
        except (self._aiohttp.ClientError, OSError) as error:
            raise Transient(
                f"the connection failed or broke off ({type(error).__name__})"
            ) from error
        if status in (408, 425, 429) or status >= 500:
            raise Transient(f"HTTP {status}: {_excerpt(raw, target.key)}", _seconds(asked))
        if status != 200:
            raise Refused(f"HTTP {status}: {_excerpt(raw, target.key)}", status)
        try:
            body = json.loads(raw)
        except ValueError as error:
            raise Transient(f"the body is not JSON: {_excerpt(raw, target.key)}") from error
        if not _well_formed(path, body):
            raise Transient(
                f"the body has not the form that {path} promises: {_excerpt(raw, target.key)}"
            )
        return dict(body)


def _well_formed(path: str, body: Any) -> bool:
    """Completions hold `choices` with text or a message, the pooling kind holds `data`; of other
    paths only an object is expected."""
    if not isinstance(body, dict):
        return False
    if path.endswith("/completions"):
        choices = body.get("choices")
        part = ("message", dict) if path.endswith("/chat/completions") else ("text", str)
        return (
            isinstance(choices, list)
            and bool(choices)
            and all(isinstance(c, dict) and isinstance(c.get(part[0]), part[1]) for c in choices)
        )
    if path.endswith(("/embeddings", "/pooling", "/classify", "/score")):
        return isinstance(body.get("data"), list) and bool(body["data"])
    return True


def _excerpt(raw: bytes, key: str | None) -> str:
    """What the server says, on one line of at most 300 characters, without the key (some servers
    repeat it when they refuse it)."""
    text = raw.decode(errors="replace")
    try:
        said = json.loads(text)
        said = said.get("error", said) if isinstance(said, dict) else said
        text = str(said.get("message", said) if isinstance(said, dict) else said)
    except ValueError:
        pass
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
    return min(max(wait, 0.0), 3600.0) if wait == wait else 0.0


def _pause(state: RetryCallState) -> float:
    from tenacity import wait_random_exponential

    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, Transient) else 0.0
    return max(asked, wait_random_exponential(multiplier=BACKOFF[0], max=BACKOFF[1])(state))
