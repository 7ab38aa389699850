"""core/serving/health.py: an engine that stands still is told from one that is busy; vLLM's /health
says 200 of both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core.serving import health

COUNTERS = (
    'vllm:prompt_tokens_total{{engine="0"}} {0}\nvllm:num_requests_running{{engine="0"}} {1}\n'
)


class Server:
    """A vLLM whose engine has done `done` by now, and does `pace` more between two looks."""

    def __init__(self) -> None:
        self.done, self.pace, self.answers, self.counts = 5, 0, False, True
        self.over = threading.Event()
        self.looks = 0
        mine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mine.looks += 1
                mine.done += mine.pace
                text = COUNTERS.format(mine.done, mine.looks)
                self._say(200 if mine.counts else 404, text)

            def do_POST(self) -> None:
                if not mine.answers:
                    mine.over.wait(30)
                self._say(400, "too long")

            def _say(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(health, "HANGS", 0.2)
    made = Server()
    yield made
    made.over.set()
    made.http.shutdown()


def test_an_engine_that_does_nothing_although_it_is_asked_stands_still(server: Server) -> None:
    assert health.stands_still(server.url, "key", "m")


def test_one_that_is_busy_with_others_does_not(server: Server) -> None:
    server.pace = 1
    assert not health.stands_still(server.url, "key", "m")


def test_one_that_answers_does_not_even_where_it_refuses(server: Server) -> None:
    server.answers = True
    assert not health.stands_still(server.url, "key", "m")


def test_nothing_is_said_of_a_server_without_metrics(server: Server) -> None:
    server.counts = False
    assert not health.stands_still(server.url, "key", "m")
