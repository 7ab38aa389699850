"""A small real OpenAI-compatible server on loopback for tests: it answers by a function, records
what it was asked, and misbehaves on request.

    with ScriptedServer(lambda path, body: completion("hello")) as server:
        ServerSpec(model="m", urls=(server.url,))
        ...
        assert server.high_water <= 8 and server.requests[0].body["prompt"] == [1, 2, 3]

From a shell, so that it survives the death of the process under test (it takes and ignores vLLM's
options, and wants VLLM_API_KEY where that is set):

    python -m tests.scripted_server --behaviour magpie --port 8123 --log requests.jsonl --delay 0.2
    --faults 0.2
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Fault:
    """What to do instead of answering.

    kind: "status" (with `status`, `words` and perhaps `retry_after` seconds), "hang" (until the
    client leaves), "cut" (half a body), "garbage" (not JSON), "nested" (JSON deeper than Python
    reads), "wrong_schema" (JSON without choices or data), "empty" (no body at all),
    "drop" (the connection is closed without an answer).
    """

    kind: str
    status: int = 500
    retry_after: float | None = None
    words: str = "scripted failure"


FAULTS = (
    Fault("status", 429, 0.05),
    Fault("status", 500),
    Fault("hang"),
    Fault("cut"),
    Fault("garbage"),
    Fault("wrong_schema"),
    Fault("empty"),
)
"""One of each, as a bad judge server shows them."""

Answer = Callable[[str, dict[str, Any]], "dict[str, Any] | Fault"]


@dataclass(frozen=True)
class Recorded:
    """One request as it came in."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    """Seconds of a monotonic clock."""


class ScriptedServer:
    """Answers POST requests with `answer(path, body)` after `delay` seconds; /health and /v1/models
    are always there.

    `requests` is what was asked so far, `high_water` the most requests that were open at once. With
    `key`, /v1 wants it as a bearer token.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        delay: float = 0.0,
        key: str | None = None,
        port: int = 0,
        log: Path | None = None,
    ) -> None:
        self.answer, self.delay, self.key, self.port = answer, delay, key, port
        self.requests: list[Recorded] = []
        self.high_water = 0
        self._open = 0
        self._log = log.open("a", buffering=1) if log else None
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        """Base address, without /v1."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ScriptedServer:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30), "the scripted server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def run(self) -> None:
        """Serve in this thread until the process ends."""
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=2**28)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/{path:.*}", self._post)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, backlog=1024)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    def _refused(self, request: web.Request) -> web.Response | None:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            sent = request.headers.get("Authorization", "nothing")
            return web.json_response(
                {"error": {"message": f"wrong key: {sent}", "type": "auth", "code": 401}},
                status=401,
            )
        return None

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        return self._refused(request) or web.json_response(
            {
                "object": "list",
                "data": [{"id": "scripted", "object": "model", "max_model_len": 8192}],
            }
        )

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        self.requests.append(Recorded(request.path, body, dict(request.headers), time.monotonic()))
        self._note("asked", request.path, body)
        self._open += 1
        self.high_water = max(self.high_water, self._open)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            answer = self.answer(request.path, body)
            if isinstance(answer, Fault):
                self._note(answer.kind, request.path, body)
                return await _misbehave(request, answer)
            self._note("answered", request.path, body)
            return web.json_response(answer)
        finally:
            self._open -= 1

    def _note(self, event: str, path: str, body: dict[str, Any]) -> None:
        if self._log:
            self._log.write(json.dumps({"event": event, "path": path, "body": body}) + "\n")


async def _misbehave(request: web.Request, fault: Fault) -> web.StreamResponse:
    if fault.kind == "status":
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        return web.json_response(
            {"error": {"message": fault.words, "code": fault.status}},
            status=fault.status,
            headers=headers,
        )
    if fault.kind == "hang":
        await asyncio.sleep(3600)
    if fault.kind == "garbage":
        return web.Response(text="<html>Bad gateway</html>{]", content_type="text/html")
    if fault.kind == "nested":
        return web.Response(text='{"choices": ' + "[" * 1_500, content_type="application/json")
    if fault.kind == "wrong_schema":
        return web.json_response({"result": "fine", "choices": [{"answer": "m"}]})
    if fault.kind == "empty":
        return web.Response(body=b"", content_type="application/json")
    if fault.kind == "cut":
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Content-Length": "4000"}
        )
        await response.prepare(request)
        await response.write(b'{"choices": [{"index": 0, "text": "half of an ans')
        await asyncio.sleep(0.01)  # the half has left before the connection breaks
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def completion(text: str, finish_reason: str = "stop", **choice: Any) -> dict[str, Any]:
    """A /v1/completions body with one choice; `choice` adds fields to it (logprobs,
    prompt_logprobs, token_ids)."""
    tokens = len(text.split())
    one = {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None, **choice}
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return {
        "id": "cmpl-0",
        "object": "text_completion",
        "model": "scripted",
        "choices": [one],
        "usage": usage,
    }


def chat(text: str, finish_reason: str = "stop", **choice: Any) -> dict[str, Any]:
    """A /v1/chat/completions body with one choice."""
    body = completion(text, finish_reason)
    one = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish_reason,
        "logprobs": None,
        **choice,
    }
    return {**body, "id": "chatcmpl-0", "object": "chat.completion", "choices": [one]}


def refusal(words: str = "I cannot help with that.") -> dict[str, Any]:
    """A chat body whose model refused, as OpenAI's structured outputs say it."""
    message = {"role": "assistant", "content": None, "refusal": words}
    return chat("", message=message)


def flaky(answer: Answer, rate: float, faults: tuple[Fault, ...] = FAULTS) -> Answer:
    """`answer`, but a share `rate` of the calls fails, by a fixed pseudo-random choice over
    (request, how often it came)."""
    times: dict[str, int] = {}

    def faulty(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        name = json.dumps([path, body], sort_keys=True)
        times[name] = times.get(name, 0) + 1
        number = int.from_bytes(hashlib.sha256(f"{name}{times[name]}".encode()).digest()[:8], "big")
        return (
            faults[number % len(faults)]
            if (number >> 16) % 10_000 < rate * 10_000
            else answer(path, body)
        )

    return faulty


def main() -> None:
    """Serve a ready behaviour; options it does not know are ignored, so that it can stand where
    vLLM's command stands."""
    from tests.scripted_model import BEHAVIOURS, ENGINE

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--behaviour", choices=sorted(BEHAVIOURS), default="magpie")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--faults", type=float, default=0.0, help="share of calls that fail")
    parser.add_argument("--seed", type=int, default=0, help="the engine's seed, as vLLM's")
    options, _ = parser.parse_known_args()
    ENGINE.seed(options.seed)
    answer = BEHAVIOURS[options.behaviour]
    server = ScriptedServer(
        flaky(answer, options.faults) if options.faults else answer,
        delay=options.delay,
        key=os.environ.get("VLLM_API_KEY"),
        port=options.port,
        log=options.log,
    )
    server.run()


if __name__ == "__main__":
    main()
