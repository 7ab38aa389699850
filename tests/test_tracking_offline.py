"""W&B that does not answer, refuses the key or fails is said once, and never ends a run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.sending.wandb_address import unreachable
from core.tracking import StageLog, Tracker
from tests import wandb_file
from tests.loopback_wandb import LoopbackWandb

KEY = "s3cret" * 7
NOBODY = "http://127.0.0.1:9"


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of a server that answers everything so."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def with_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def tracker(folder: Path) -> Tracker:
    return Tracker("wandb", project="magpie", group="demo-1", folder=folder)


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b"{}", "refuses the API key"),
        (200, b'{"data": {"viewer": null}}', "refuses the API key"),
        (200, b"<html>log in</html>", "is no W&B"),
        (200, b"[]", "is no W&B"),
        (503, b"", "answers with an error (503)"),
    ],
)
def test_what_is_no_use_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, says: str
) -> None:
    with answering(status, body) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        why = unreachable()
    assert says in why and KEY not in why


def test_nobody_there_is_said_and_a_server_that_answers_is_fine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    assert "cannot be reached" in unreachable()
    with LoopbackWandb() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert unreachable() == ""


def test_the_address_is_that_of_the_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").write_text(f"[default]\nbase_url = {NOBODY}\n")
    assert unreachable().startswith(f"{NOBODY} cannot be reached")


def test_a_trainer_without_a_network_writes_offline_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    made = tracker(tmp_path)
    for name in ("one", "two"):
        with made.stage(name, "train", name * 4, {}, trainer=True) as log:
            assert log.trainer_env()["WANDB_MODE"] == "offline"
    said = capfd.readouterr().err
    assert said.count("cannot be reached") == 1 and "magpie track sync" in said


@pytest.mark.process
def test_a_run_without_a_network_is_written_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    with tracker(tmp_path).stage("judge", "judge", "k" * 20, {}) as log:
        log.metrics({"judged": 3.0})
        log.finish({"output": "digest"})
    assert wandb_file.read(tmp_path)["judge-" + "k" * 12].history[0]["judged"] == 3.0


class Failing:
    """In place of a W&B run whose service is gone."""

    def log(self, *_: Any, **__: Any) -> None:
        raise BrokenPipeError("the service is gone")

    def finish(self, **_: Any) -> None:
        raise BrokenPipeError("the service is gone")


def test_what_wandb_raises_ends_no_stage_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StageLog, "_open", lambda self: Failing())
    with tracker(tmp_path).stage("judge", "judge", "k" * 20, {}) as log:
        for step in range(3):
            log.metrics({"judged": float(step)})
        log.finish({"output": "digest"})
    assert capfd.readouterr().err.count("judge is not tracked any further") == 1
    assert log.seen == {"judged": 2.0}


def test_a_run_that_cannot_be_opened_ends_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def opened(self: StageLog) -> None:
        raise TimeoutError("no answer from the service")

    monkeypatch.setattr(StageLog, "_open", opened)
    with tracker(tmp_path).stage("judge", "judge", "k" * 20, {}) as log:
        log.metrics({"judged": 1.0})
        log.finish({"output": "digest"})
    assert capfd.readouterr().err.count("not tracked any further") == 1
