"""What several test files share: a store, the data folder, the embedded teacher, and one real vLLM
server for the whole session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.models import Model, resolve
from core.sending import client
from core.servers import Endpoint, Servers
from core.store import Store
from core.tracking import Log
from core.wire import ServerSpec
from recipes.checks import libraries
from tests.scripted_server import ScriptedServer

TEACHER = "embedded/SmolLM2-135M-Instruct"


PROCESS = ("process", "stack", "slow")
"""The markers that allow a test to start a process; `make test-fast` runs what has none of them."""

EVENTS = (
    "subprocess.Popen",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
)
_started: list[str] = []


def _note_process(event: str, arguments: tuple[Any, ...]) -> None:
    if event in EVENTS:
        _started.append(f"{event} {arguments[:2]!r}"[:200])


sys.addaudithook(_note_process)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """What starts from here on is this test's, fixtures of a wider scope included."""
    _started.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """A test that starts a process says so with a marker."""
    started = list(_started)
    result = yield
    if started and not any(item.get_closest_marker(name) for name in PROCESS):
        pytest.fail(f"this test starts a process; mark it `process`: {started[0]}", pytrace=False)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two workers share the tests: one takes the real stack, whose threads spin and whose trainings
    need both cores anyhow, the other whole files of the rest. What asks the teacher's server stands
    together, so that it starts once."""
    for item in items:
        stack = item.get_closest_marker("stack") is not None
        item.add_marker(pytest.mark.xdist_group("stack" if stack else item.path.stem))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    fixtures = getattr(item, "fixturenames", ())
    if "teacher_endpoint" in fixtures:
        return 0
    if item.get_closest_marker("stack") is None:
        return 3
    return 1 if "teacher" in fixtures else 2


def pytest_sessionstart() -> None:
    """What a manifest records of the machine asks git once a process: before any test is
    watched."""
    from recipes.stages.environment import environment

    environment()


@pytest.fixture(autouse=True)
def _same_folder() -> Iterator[None]:
    """A test that goes to another folder (a cluster's task does) leaves the next ones where they
    were."""
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def _libraries_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM, TRL and lm-eval are not asked about every recipe of a test: their checkers have tests
    of their own, and processes that a test starts ask them."""
    monkeypatch.setattr(libraries, "judge", lambda *_: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """The servers of a run of its own; ended after the test."""
    with Servers(Log(), tmp_path / "logs") as made:
        yield made


@pytest.fixture
def serve(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Endpoint, ScriptedServer]]]:
    """`serve(answer, **spec)`: an endpoint and the scripted server on loopback behind it, which
    answers by a function; no waits before retries."""
    monkeypatch.setattr(client, "BACKOFF", (0.001, 0.005))
    opened: list[ScriptedServer] = []

    def start(
        answer: Callable[[str, dict[str, Any]], Any], **spec: Any
    ) -> tuple[Endpoint, ScriptedServer]:
        server = ScriptedServer(answer).__enter__()
        opened.append(server)
        return servers.serve(ServerSpec(model="scripted", urls=(server.url,), **spec)), server

    yield start
    for server in opened:
        server.__exit__()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder (MAGPIE_SHARED, else `../shared`); its files are read where they lie and
    never copied into the project."""
    folder = Path(os.environ.get("MAGPIE_SHARED") or Path(__file__).parents[2] / "shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared data is not at {folder}; set MAGPIE_SHARED")
    return folder


@pytest.fixture(scope="session")
def teacher() -> Model:
    """The embedded teacher, SmolLM2-135M-Instruct, converted on first use."""
    return resolve(TEACHER)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """`Servers` of the whole session, for `stack` tests on a real vLLM: ask it for
    `vllm.serve(spec)`, and for equal specs to share a server."""
    with Servers(Log(), tmp_path_factory.mktemp("vllm")) as made:
        yield made


@pytest.fixture
def teacher_endpoint(vllm: Servers, teacher: Model) -> Endpoint:
    """The teacher on the session's vLLM server (2,048 tokens)."""
    return vllm.serve(ServerSpec(model=teacher.path, args={"max_model_len": 2048}))
