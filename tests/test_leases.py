"""Leases: one holder of all machines, what a dead one leaves, and who is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.cells import leases
from core.cells.leases import PATIENCE, Lease, leased
from core.errors import UserError
from core.store import Store
from tests.waiting import exit_code, until


def of_another_machine(path: Path, silent: float) -> None:
    """A lease that another machine's process left, `silent` seconds without a sign of life."""
    holder = {"token": "theirs", "pid": os.getpid(), "machine": "n7", "host": "n7", "job": "31"}
    path.write_text(json.dumps({**holder, "since": 0.0}))
    at = path.stat().st_mtime - silent
    os.utime(path, (at, at))


def test_a_second_holder_is_told_who_has_it(tmp_path: Path) -> None:
    with (
        leased(tmp_path / "x", "taken by {holder}", None),
        pytest.raises(UserError, match=f"taken by process {os.getpid()} on "),
        leased(tmp_path / "x", "taken by {holder}", None),
    ):
        pass
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"


def test_braces_in_the_name_of_a_store_are_no_places_to_fill(tmp_path: Path) -> None:
    with (
        leased(tmp_path / "x", "", None),
        pytest.raises(UserError, match=r"process \d+ on .* makes it in a\{b\}"),
        leased(tmp_path / "x", "{holder} makes it in a{b}", None),
    ):
        pass


def test_who_waits_gets_it_when_it_is_given_back(tmp_path: Path) -> None:
    first, said = Lease(tmp_path / "x"), list[str]()
    assert first.acquire() is None
    threading.Timer(0.2, first.release).start()
    with leased(tmp_path / "x", "{holder}", said.append):
        assert len(said) == 1 and "waiting for process" in said[0]


def test_a_living_holder_on_another_machine_keeps_it(tmp_path: Path) -> None:
    of_another_machine(tmp_path / "x", PATIENCE - 30)
    assert Lease(tmp_path / "x").acquire() == f"process {os.getpid()} on n7, Slurm job 31"


DAMAGED = (
    b"[1, 2]",
    b"null",
    b'"text"',
    b"7",
    b"{]",
    b"\xff\xfe",
    b'{"token": 5, "pid": 1}',
    b'{"token": "../../x", "pid": 1, "since": 0}',
    b'{"token": "a", "pid": "../1", "since": 0}',
    b'{"token": "a", "pid": 1}',
    b"[" * 100_000,
)


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_lease_is_one_of_nobody_known(tmp_path: Path, text: bytes) -> None:
    """It holds as long as one of another machine may, and is then taken over."""
    path = tmp_path / "x"
    path.write_bytes(text)
    assert Lease(path).acquire() == "process 0 on a machine"
    at = path.stat().st_mtime - PATIENCE - 1
    os.utime(path, (at, at))
    mine = Lease(path)
    assert mine.acquire() is None
    mine.release()
    assert [*tmp_path.iterdir()] == []


def test_a_silent_holder_on_another_machine_is_taken_over(tmp_path: Path) -> None:
    of_another_machine(tmp_path / "x", PATIENCE + 30)
    mine = Lease(tmp_path / "x")
    assert mine.acquire() is None
    mine.release()


@pytest.mark.parametrize("text", ["", '{"token": "ha'])
def test_a_lease_that_was_never_signed_is_another_machines(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    assert Lease(tmp_path / "x").acquire() == "process 0 on a machine"
    at = time.time() - PATIENCE - 30
    os.utime(tmp_path / "x", (at, at))
    mine = Lease(tmp_path / "x")
    assert mine.acquire() is None
    mine.release()


def test_a_dead_process_of_the_same_number_is_not_its_successor(tmp_path: Path) -> None:
    mine = Lease(tmp_path / "x")
    assert mine.acquire() is None
    held = json.loads((tmp_path / "x").read_text())
    (tmp_path / "x").write_text(json.dumps({**held, "since": held["since"] - 100}))
    heir = Lease(tmp_path / "x")
    assert heir.acquire() is None
    mine.release()
    assert (tmp_path / "x").exists(), "who was taken over gives back nothing"
    heir.release()


def test_of_many_that_find_a_dead_one_exactly_one_takes_it_over(tmp_path: Path) -> None:
    for round_ in range(10):
        path = tmp_path / f"x{round_}"
        of_another_machine(path, PATIENCE + 30)
        heirs = [Lease(path) for _ in range(8)]
        with ThreadPoolExecutor(8) as together:
            found = list(together.map(Lease.acquire, heirs))
        assert found.count(None) == 1
        next(heir for heir, holder in zip(heirs, found, strict=True) if holder is None).release()
        assert list(tmp_path.iterdir()) == []


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.02)
    with leased(tmp_path / "x", "", None):
        os.utime(tmp_path / "x", (0, 0))
        until(lambda: (tmp_path / "x").stat().st_mtime > 0, "a sign of life")


def test_a_result_that_another_run_has_just_made_is_not_made_again(store: Store) -> None:
    with store.build("train", "k" * 64, {}) as build:
        assert build is not None
        (build.path / "weights").write_text("theirs")
    with store.build("train", "k" * 64, {}) as build:
        assert build is None
    assert (store.folder("train", "k" * 64) / "weights").read_text() == "theirs"


HOLD = """
import sys, time
from pathlib import Path
from core.cells import leases
leases.BEAT = 0.05
assert leases.Lease(Path(sys.argv[1])).acquire() is None
print("held", flush=True)
time.sleep(600)
"""


def holder(path: Path) -> subprocess.Popen[bytes]:
    """A process that holds a lease."""
    command = [sys.executable, "-c", HOLD, str(path)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout is not None and started.stdout.readline() == b"held\n"
    return started


@pytest.mark.process
def test_what_a_killed_process_held_is_free_at_once(tmp_path: Path) -> None:
    other = holder(tmp_path / "x")
    assert Lease(tmp_path / "x").acquire() is not None
    other.send_signal(signal.SIGKILL)
    exit_code(other)
    mine = Lease(tmp_path / "x")
    assert mine.acquire() is None
    mine.release()


@pytest.mark.process
def test_who_was_taken_over_ends(tmp_path: Path) -> None:
    other = holder(tmp_path / "x")
    (tmp_path / "x").unlink()
    heir = Lease(tmp_path / "x")
    assert heir.acquire() is None
    assert exit_code(other) == 1
    assert other.stderr is not None and b"was taken over by another run" in other.stderr.read()
    heir.release()


@pytest.mark.process
def test_a_holder_that_was_taken_over_ends_though_its_file_is_stale(tmp_path: Path) -> None:
    """A network file system knows the held file no more (ESTALE) once another has its name."""
    script = (
        "import os, pathlib, time\n"
        "from core.cells import leases\n"
        "def stale(_): raise OSError(116, 'Stale file handle')\n"
        "leases.BEAT, leases.os.utime = 0.02, stale\n"
        f"path = pathlib.Path({str(tmp_path / 'x')!r})\n"
        "assert leases.Lease(path).acquire() is None\n"
        'path.write_text(\'{"token": "theirs"}\')\n'
        "time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1 and "was taken over by another run" in ended.stderr
