"""The small process that owns a server and ends it when the run is gone.

SIGKILL runs no clean-up: killing the harness leaves every vLLM process alive, killing vLLM's API
server leaves its engine and its workers (both measured). So a server is never a child of the
harness. This file, run as a script in a session of its own, starts the server and holds the read
end of a pipe from the harness:

    harness gone (pipe at end of file, or another parent)
        ->  the server and all its descendants are ended, then the supervisor
    server gone
        ->  what it left behind is ended, then the supervisor
    supervisor gone
        ->  the harness ends the session; if the harness is gone too, the kernel tells the server

A command that can save its work says so by keeping a file (`listening`). It is ended by removing
that file first, and gets `grace` seconds to end by itself.

It is Linux's own means that make this hold: a child subreaper inherits orphans, also those that
left the group or the session, and PR_SET_PDEATHSIG reaches the server when its supervisor dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import psutil

POLITE = 2.0
"""Seconds between SIGTERM and SIGKILL."""

PATIENCE = 20.0
"""Seconds after which killing is given up (a process in uninterruptible sleep cannot be ended by
anyone)."""

_OWNER = "MAGPIE_SUPERVISOR_OWNER"
_TOKEN = "MAGPIE_SUPERVISOR_TOKEN"
_SCRATCH = "MAGPIE_SUPERVISOR_SCRATCH"
_LISTENING = "MAGPIE_SUPERVISOR_LISTENING"
_GRACE = "MAGPIE_SUPERVISOR_GRACE"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Saves:
    """How a command is asked to save its work and end: by removing a file that it keeps while it
    can."""

    listening: Path
    """The file; where it is not there, the command has nothing to save."""

    grace: float
    """Seconds it gets to end by itself."""


class Supervised:
    """A command under a supervisor, seen from the harness; its output is appended to `log`.

    `scratch` is a short temporary folder for the command's sockets and whatever else it leaves,
    named in TMPDIR and in the environment variable `scratch_variable`, and removed at the end; the
    lock on it is the supervisor's too.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        scratch_variable: str = _SCRATCH,
        *,
        saves: Saves | None = None,
    ) -> None:
        """Start the supervisor, and with it the command in the environment `env`; returns at
        once. `saves`: how the command is asked to save its work before it is ended."""
        # Imported here: this file is also run as a script that sees no module of ours.
        from core.serving import temporary

        self._temporary = temporary.make()
        self.scratch = self._temporary.folder
        folder = str(self.scratch)
        self._token = secrets.token_hex(16)
        ours = {_OWNER: str(os.getpid()), _TOKEN: self._token}
        ours |= self._temporary.environment()
        ours |= {_SCRATCH: folder, scratch_variable: folder}
        self._patience = POLITE + PATIENCE
        if saves is not None:
            ours |= {_LISTENING: str(saves.listening), _GRACE: str(saves.grace)}
            self._patience += saves.grace
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # -P and the file's path: nothing in the working directory can shadow a module, and no
            # installation is needed.
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, *argv],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**env, **ours},
                start_new_session=True,
                pass_fds=[self._temporary.lock],
            )
        self._gone = threading.Event()
        threading.Thread(target=self._watch, name=f"watch-{self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id of the supervisor, which is also the id of the session that the server lives
        in."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """False once the server and everything it started have ended."""
        return not self._gone.is_set()

    @property
    def exit_code(self) -> int | None:
        """The server's exit status as the supervisor passed it on (128 + signal for a signal), None
        while running."""
        return self._process.returncode if self._gone.is_set() else None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything has ended; False when `timeout` seconds passed before."""
        return self._gone.wait(timeout)

    def stop(self) -> None:
        """End the server and everything it started, once it has saved its work where it does;
        returns when they are gone."""
        with contextlib.suppress(OSError):
            cast(IO[bytes], self._process.stdin).close()
        if not self._gone.wait(self._patience):
            self.kill()

    def kill(self) -> None:
        """End everything now; nothing is saved."""
        self._process.kill()  # the watching thread then ends what is left
        self._gone.wait(PATIENCE)

    def _watch(self) -> None:
        """Wait for the supervisor; one that was killed could not end its server, so do it here."""
        # WNOWAIT keeps the process id taken while the session is searched, so that it cannot come
        # to name another session meanwhile.
        how = None
        with contextlib.suppress(ChildProcessError):  # someone else in this process collected it
            how = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if how is None or how.si_code != os.CLD_EXITED:
            _kill_until_gone(lambda: _of_session(self.pid, self._token))
        self._process.wait()
        self._temporary.remove()
        self._gone.set()


def _of_session(session: int, token: str) -> list[psutil.Process]:
    """Processes of the session, and those that left it but still carry the token in their
    environment."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == session or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) == session or process.environ().get(_TOKEN) == token:
                members.append(process)
    return members


def _kill_until_gone(find: Callable[[], list[psutil.Process]]) -> None:
    """SIGKILL what `find` finds, again and again (a process may fork while it is searched for),
    until it finds nothing."""
    started = time.monotonic()
    while (alive := find()) and time.monotonic() < started + PATIENCE:
        # Python's resource trackers go last: when the others are gone they unlink the shared memory
        # that those left in /dev/shm, and end.
        late = time.monotonic() > started + 1
        for process in alive:
            if late or not _is_tracker(process):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        time.sleep(0.02)


def _is_tracker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "resource_tracker" in " ".join(process.cmdline())
    return False


class _Supervisor:
    """The supervisor itself: its server, and what is to be known of it."""

    def __init__(self, argv: list[str]) -> None:
        """Start the server, and become the one who inherits its orphans."""
        self._signals: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: self._signals.append(number))
        # Slurm sends it to every process of a job; it is for those that save. The server inherits
        # this.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        me = os.getpid()

        def in_server() -> None:
            # SIGTERM: vLLM's API server then ends its engine, which SIGKILL would leave.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != me:
                os._exit(1)

        self._server = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, preexec_fn=in_server, process_group=0
        )
        self.status: int | None = None

    def watch(self, owner: int) -> None:
        """Wait until the server has ended, or the harness (process `owner`) has or wants no
        server any more, or a signal says so."""
        # The parent is watched besides the pipe: a process that the harness forked may hold a copy
        # of the pipe's other end.
        while not self._ended() and not self._signals and os.getppid() == owner:
            if select.select([0], [], [], 0.2)[0] and not os.read(0, 1):
                return

    def end(self, saves: Saves | None) -> None:
        """End the server, politely first, and all its descendants."""
        if saves is not None and saves.listening.exists():
            saves.listening.unlink(missing_ok=True)
            self._await_end(saves.grace)
        if not self._ended():
            os.kill(self._server.pid, signal.SIGTERM)
        self._await_end(POLITE)
        _kill_until_gone(self._descendants)

    def _await_end(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._ended() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _descendants(self) -> list[psutil.Process]:
        self._ended()
        return psutil.Process().children(recursive=True)

    def _ended(self) -> bool:
        """Whether the server has ended; collects every child that has."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._server.pid:
                    code = os.waitstatus_to_exitcode(ended[1])
                    self.status = code if code >= 0 else 128 - code
        return self.status is not None


def main(argv: list[str]) -> int:
    """Be the supervisor of the command `argv`; standard input is the pipe from the harness. Returns
    the server's exit status."""
    owner, scratch = int(os.environ.pop(_OWNER)), os.environ.pop(_SCRATCH)
    file, grace = os.environ.pop(_LISTENING, None), float(os.environ.pop(_GRACE, 0))
    saves = Saves(Path(file), grace) if file is not None else None
    supervisor = _Supervisor(argv)
    supervisor.watch(owner)
    supervisor.end(saves)
    shutil.rmtree(scratch, ignore_errors=True)
    return supervisor.status or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
