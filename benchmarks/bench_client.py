"""CPU that the client takes for a request: a server on loopback in a process of its own, prompts of
60 token ids, answers of 300 words, 128 requests in flight.

    python benchmarks/bench_client.py [REQUESTS]
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.queues import Queue
from pathlib import Path

from core.servers import Servers
from core.tracking import Log
from core.wire import Request, ServerSpec

ROUNDS = 4


class Answering(asyncio.Protocol):
    """Answers every request with the same completion, at once."""

    def __init__(self, answer: bytes) -> None:
        self.answer, self.held = answer, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers are written to."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self.held += data
        while (end := self.held.find(b"\r\n\r\n")) >= 0:
            length = self.held[:end].lower().split(b"content-length:")[1].split(b"\r\n")[0]
            whole = end + 4 + int(length)
            if len(self.held) < whole:
                return
            self.held = self.held[whole:]
            self.transport.write(self.answer)


def serve(port: Queue[int]) -> None:
    """Serve until the process ends."""
    choice = {"index": 0, "text": "word " * 300, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 60, "completion_tokens": 300, "total_tokens": 360}
    body = json.dumps({"id": "c", "model": "m", "choices": [choice], "usage": usage}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"

    async def main() -> None:
        answer = f"{head}\r\n".encode() + body
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Answering(answer), "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def asked(count: int) -> Iterator[Request]:
    """Requests as synthesis sends them."""
    ids = list(range(1000, 1060))
    for row in range(count):
        body = {"prompt": ids, "seed": row, "max_tokens": 8, "temperature": 0.7}
        yield Request(f"row-{row}", body)


def main() -> None:
    """Print the best of several rounds."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    port: Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    spec = ServerSpec(model="m", urls=(f"http://127.0.0.1:{port.get()}",), max_in_flight=128)
    took = []
    with tempfile.TemporaryDirectory() as folder, Servers(Log(), Path(folder)) as servers:
        endpoint = servers.serve(spec)
        for _ in range(ROUNDS):
            began = time.process_time()
            answered = sum(reply.error is None for reply in endpoint.answers(asked(count)))
            took.append((time.process_time() - began) / count * 1e6)
            assert answered == count
    server.terminate()
    print(f"{min(took):.0f} microseconds of CPU a request (best of {ROUNDS} x {count:,})")


if __name__ == "__main__":
    main()
