"""core/serving/supervisor.py: whoever is killed, no process of a server stays. Proven on a
scripted server that forks, and once on a real vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.models import Model
from core.serving.supervisor import POLITE, Saves, Supervised
from tests.waiting import until

ROOT = Path(__file__).parents[1]

FORKING_SERVER = """
    # A server as bad as they come: a child in its group, one in a session of its own, one orphaned,
    # one without environment; all deaf to SIGTERM.
    import os, signal, sys, time

    def note():
        with open(sys.argv[1], "a") as file:
            file.write(f"{os.getpid()}\\n")

    def deaf():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note()
        while True:
            time.sleep(1)

    if sys.argv[2:] == ["bare"]:
        deaf()
    if os.fork() == 0:
        deaf()
    if os.fork() == 0:
        os.setsid()
        deaf()
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            deaf()
        os._exit(0)
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, __file__, sys.argv[1], "bare"], {})
    deaf()
"""
PROCESSES = 5

HARNESS = """
    # A harness that starts the forking server and then does nothing; it may fork a child that holds
    # a copy of the pipe.
    import os, sys, time
    from pathlib import Path
    from core.serving.supervisor import Supervised

    log = Path(sys.argv[1]) / "log"
    server = Supervised([sys.executable, *sys.argv[2:4]], dict(os.environ), log)
    Path(sys.argv[1], "supervisor").write_text(str(server.pid))
    if "fork" in sys.argv and os.fork() == 0:
        Path(sys.argv[1], "holder").write_text(str(os.getpid()))
    time.sleep(600)
"""


class Forking:
    """The forking server's script and what it notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script, self.harness, self.pids = (
            folder / "server.py",
            folder / "harness.py",
            folder / "pids",
        )
        self.script.write_text(textwrap.dedent(FORKING_SERVER))
        self.harness.write_text(textwrap.dedent(HARNESS))

    def processes(self) -> list[psutil.Process]:
        """All processes of the server, once they all run."""
        until(
            lambda: self.pids.exists() and len(self.pids.read_text().split()) == PROCESSES,
            "the forking server did not come up",
        )
        return [psutil.Process(int(pid)) for pid in self.pids.read_text().split()]

    def under_a_harness(
        self, *extra: str
    ) -> tuple[subprocess.Popen[bytes], psutil.Process, list[psutil.Process]]:
        """A harness process with the server: the harness, the supervisor, the server's
        processes."""
        argv = [
            sys.executable,
            str(self.harness),
            str(self.folder),
            str(self.script),
            str(self.pids),
            *extra,
        ]
        harness = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)})
        processes = self.processes()
        return harness, psutil.Process(int((self.folder / "supervisor").read_text())), processes


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all have ended; one that ended and waits for its parent counts."""
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def forking(tmp_path: Path) -> Iterator[Forking]:
    """The forking server; whatever a failing test leaves of it is ended here."""
    made = Forking(tmp_path)
    yield made
    for pid in made.pids.read_text().split() if made.pids.exists() else []:
        try:
            process = psutil.Process(int(pid))
            if str(made.script) in process.cmdline():
                process.kill()
        except psutil.NoSuchProcess:
            pass


@pytest.fixture
def supervised(forking: Forking) -> Iterator[Supervised]:
    """The forking server under a supervisor of this process."""
    made = Supervised(
        [sys.executable, str(forking.script), str(forking.pids)], os.environ, forking.folder / "log"
    )
    yield made
    made.stop()


@pytest.mark.process
def test_stopping_ends_every_descendant_also_those_that_left_the_group_the_session_or_their_parent(
    forking: Forking, supervised: Supervised
) -> None:
    processes = forking.processes()
    assert supervised.running and supervised.scratch.is_dir()
    supervised.stop()
    assert gone(processes) and not supervised.running and not supervised.scratch.exists()


@pytest.mark.process
def test_a_killed_server_takes_what_it_started_with_it(
    forking: Forking, supervised: Supervised
) -> None:
    processes = forking.processes()
    min(
        processes, key=psutil.Process.create_time
    ).kill()  # the server itself; the others it started
    assert supervised.wait(10) and gone(processes)
    assert supervised.exit_code == 128 + signal.SIGKILL


@pytest.mark.process
def test_a_server_that_ends_by_itself_passes_its_exit_code_on(tmp_path: Path) -> None:
    server = Supervised(
        [sys.executable, "-c", "print('last words'); raise SystemExit(7)"],
        os.environ,
        tmp_path / "log",
    )
    assert server.wait(10) and server.exit_code == 7
    assert (tmp_path / "log").read_text() == "last words\n"


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_supervisor_is_noticed_by_the_harness_which_ends_the_server(
    forking: Forking, supervised: Supervised, number: int
) -> None:
    processes = forking.processes()
    os.kill(supervised.pid, number)
    assert supervised.wait(10) and gone(processes)


@pytest.mark.process
@pytest.mark.parametrize("extra", [[], ["fork"]], ids=["alone", "with a child that holds the pipe"])
def test_a_killed_harness_leaves_nothing(forking: Forking, extra: list[str]) -> None:
    harness, supervisor, processes = forking.under_a_harness(*extra)
    harness.kill()
    harness.wait()
    until(lambda: gone([supervisor, *processes]), "processes outlived the harness")
    if extra:
        psutil.Process(int((forking.folder / "holder").read_text())).kill()


@pytest.mark.process
def test_a_server_whose_supervisor_and_harness_are_both_killed_is_told_by_the_kernel(
    tmp_path: Path,
) -> None:
    polite = tmp_path / "polite.py"
    polite.write_text(
        "import pathlib, signal, sys, time\n"
        "told = lambda: pathlib.Path(sys.argv[1]).write_text('told')\n"
        "signal.signal(15, lambda *_: (told(), sys.exit()))\n"
        "pathlib.Path(sys.argv[1] + '.up').touch()\ntime.sleep(600)\n"
    )
    harness_script = tmp_path / "harness.py"
    harness_script.write_text(textwrap.dedent(HARNESS))
    argv = [sys.executable, str(harness_script), str(tmp_path), str(polite), str(tmp_path / "said")]
    # TMPDIR: nobody will be left to remove the scratch folder.
    harness = subprocess.Popen(
        argv, env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    )
    until((tmp_path / "said.up").exists, "the server did not come up")
    supervisor = psutil.Process(int((tmp_path / "supervisor").read_text()))
    (server,) = supervisor.children()
    os.kill(harness.pid, signal.SIGSTOP)  # it can neither notice nor help
    supervisor.kill()
    harness.kill()
    harness.wait()
    until(lambda: gone([server]), "the server was not told")
    assert (tmp_path / "said").read_text() == "told"


SAVING = """
    # A command that keeps a file while it can save; told to end, it takes its time, and says how it
    # ended.
    import pathlib, signal, sys, time
    listening, said, seconds = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    signal.signal(signal.SIGTERM, lambda *_: (said.write_text("terminated"), sys.exit()))
    listening.touch()
    while listening.exists():
        time.sleep(0.05)
    time.sleep(float(seconds))
    said.write_text("saved")
    sys.exit(75)
"""


def saving(folder: Path, seconds: float, grace: float) -> tuple[Supervised, Path]:
    """A supervised command that needs `seconds` to save, once it runs; what it says at its end."""
    script, listening, said = folder / "saving.py", folder / "listening", folder / "said"
    script.write_text(textwrap.dedent(SAVING))
    argv = [sys.executable, str(script), str(listening), str(said), str(seconds)]
    child = Supervised(argv, dict(os.environ), folder / "log", saves=Saves(listening, grace))
    until(listening.exists, "the command did not come up")
    return child, said


@pytest.mark.process
def test_a_command_that_saves_is_given_the_time_for_it(tmp_path: Path) -> None:
    child, said = saving(tmp_path, POLITE + 1, grace=600)
    child.stop()
    assert said.read_text() == "saved" and child.exit_code == 75


@pytest.mark.process
def test_a_command_that_does_not_save_in_time_is_ended(tmp_path: Path) -> None:
    child, said = saving(tmp_path, 3000, grace=0.5)
    child.stop()
    assert not child.running and said.read_text() == "terminated"


@pytest.mark.process
def test_a_command_with_nothing_to_save_is_not_waited_for(tmp_path: Path) -> None:
    child, said = saving(tmp_path, 3000, grace=3000)
    (tmp_path / "listening").unlink()
    child.stop()
    assert said.read_text() == "terminated"


@pytest.mark.process
def test_saving_is_cut_short_on_demand(tmp_path: Path) -> None:
    child, said = saving(tmp_path, 3000, grace=3000)
    child.kill()
    ended = said.read_text() if said.exists() else "killed"
    assert not child.running and ended in ("terminated", "killed")


@pytest.mark.process
def test_a_signal_for_those_that_save_ends_no_supervisor(tmp_path: Path) -> None:
    child, said = saving(tmp_path, 0, grace=600)
    os.kill(child.pid, signal.SIGUSR1)
    child.stop()
    assert said.read_text() == "saved"


REAL_HARNESS = """
    # Streams from a real vLLM: 40 rows, noting each reply, then sits with an open stream until it
    # is killed.
    import json, sys
    from pathlib import Path
    from core.servers import Servers
    from core.wire import Request, ServerSpec
    from core.tracking import Log

    folder, model = Path(sys.argv[1]), sys.argv[2]
    with Servers(Log(), folder) as servers, open(folder / "replies", "a", buffering=1) as file:
        spec = ServerSpec(model=model, args={"max_model_len": 1024}, max_in_flight=8)
        endpoint = servers.serve(spec)
        body = {"prompt": [1, 9690, 198], "max_tokens": 64, "min_tokens": 64}
        for name, rows in (("0", 40), ("1", 40), ("end", 100_000)):
            requests = (Request(f"{name}-{i}", {**body, "seed": i}) for i in range(rows))
            for reply in endpoint.stream(requests):
                file.write(json.dumps([reply.key, reply.error]) + "\\n")
"""


@pytest.mark.slow
@pytest.mark.stack
def test_real_vllm_is_restarted_when_its_api_server_is_killed_and_ends_with_the_harness(
    tmp_path: Path, teacher: Model
) -> None:
    script = tmp_path / "harness.py"
    script.write_text(textwrap.dedent(REAL_HARNESS))
    replies, shared_memory = tmp_path / "replies", set(Path("/dev/shm").iterdir())

    def answered(prefix: str) -> list[list[str | None]]:
        lines = replies.read_text().splitlines() if replies.exists() else []
        return [row for row in map(json.loads, lines) if row[0].startswith(prefix)]

    harness = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), teacher.path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    me = psutil.Process(harness.pid)
    try:
        until(lambda: len(answered("0-")) >= 10, "vLLM gave no answers")
        first = me.children(recursive=True)
        (server,) = [
            p
            for p in first
            if "vllm.entrypoints.openai.api_server" in p.cmdline()
            and "supervisor" not in " ".join(p.cmdline())
        ]
        assert len(first) >= 4, f"expected supervisor, API server, engine and worker: {first}"
        server.kill()
        until(lambda: gone(first), "engine or worker outlived the API server")
        until(lambda: answered("end-"), "vLLM was not restarted")
        for prefix in ("0-", "1-"):
            assert sorted(answered(prefix)) == sorted([f"{prefix}{i}", None] for i in range(40)), (
                "a row was lost, doubled or failed"
            )
        second = me.children(recursive=True)
        assert len(second) >= 4
    finally:
        harness.kill()
        harness.wait()
    until(lambda: gone(second), "processes outlived the harness")
    assert not [
        path
        for path in Path("/dev/shm").iterdir()
        if path not in shared_memory and path.name.startswith("psm_")
    ]
