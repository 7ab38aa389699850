"""Temporary folders go with whoever made them, whatever killed it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.serving import temporary
from core.serving.supervisor import Supervised
from tests.waiting import until

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of the test's own, with a short name."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setenv("MAGPIE_TMPDIR", folder)
        yield Path(folder)


def test_what_a_block_leaves_goes_with_it(short: Path) -> None:
    before = tempfile.gettempdir(), dict(os.environ)
    with temporary.own():
        inside = Path(tempfile.mkdtemp(prefix="torchelastic_"))
        assert inside.parent.parent == short and os.environ["TMPDIR"] == str(inside.parent)
        with temporary.own():
            assert tempfile.gettempdir() == str(inside.parent)
        assert inside.is_dir()
    assert not any(short.iterdir())
    assert (tempfile.gettempdir(), dict(os.environ)) == before


def test_a_folder_that_is_held_is_not_swept(short: Path) -> None:
    held = temporary.make()
    temporary.sweep()
    assert held.folder.is_dir()
    held.remove()
    assert not any(short.iterdir())


def test_a_folder_that_nobody_holds_is_swept_and_only_that(short: Path) -> None:
    left, other = short / "magpie-left", short / "magpie-alpaca-eval-1"
    for folder in (left / "torchelastic_x", other):
        folder.mkdir(parents=True)
    (left / ".held").touch()
    temporary.make().remove()
    assert sorted(short.iterdir()) == [other]


def test_a_folder_of_another_machine_is_left_to_it(short: Path) -> None:
    """Its lock may not reach here; one of this machine before it started again holds nothing."""
    other, restarted, mine = (short / f"magpie-{name}" for name in ("other", "restarted", "mine"))
    here = temporary._machine()
    said = ("n7 another-boot", f"{here.split()[0]} another-boot", f"n7 {here.split()[1]}")
    for folder, text in zip((other, restarted, mine), said, strict=True):
        folder.mkdir()
        (folder / ".held").write_text(text)
    temporary.sweep()
    assert [*short.iterdir()] == [other]


def test_no_link_is_followed(short: Path, tmp_path: Path) -> None:
    """What somebody else puts into a shared temporary folder leads to no file of ours."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / ".held").touch()
    (short / "magpie-link").symlink_to(precious)
    planted = short / "magpie-planted"
    planted.mkdir()
    (planted / ".held").symlink_to(precious / ".held")
    temporary.sweep()
    assert (precious / ".held").exists() and planted.is_dir()


def test_a_folder_of_another_user_is_left_alone(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = short / "magpie-theirs"
    theirs.mkdir()
    (theirs / ".held").touch()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    temporary.sweep()
    assert theirs.is_dir()


def test_sockets_have_room_under_a_long_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGPIE_TMPDIR", "/scratch/" + "x" * 60)
    assert temporary.base() == Path("/tmp")


def test_caches_that_are_worth_keeping_stay(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/mine")
    made = temporary.make()
    given = made.environment()
    made.remove()
    assert Path(given["TORCHINDUCTOR_CACHE_DIR"]).parent == short and "RAY_TMPDIR" not in given


OWNER = """
import sys, tempfile
from pathlib import Path
from core.serving import temporary
from core.serving.supervisor import Supervised
import os
with temporary.own():
    tempfile.mkdtemp(prefix="wandb")
    child = Supervised(
        [sys.executable, "-c", "import tempfile, time; tempfile.mkdtemp(prefix='torchelastic_');"
         "print('there', flush=True); time.sleep(600)"],
        dict(os.environ), Path(sys.argv[1]),
    )
    child.wait()
"""


@pytest.mark.process
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_killed_run(short: Path, tmp_path: Path, how: signal.Signals) -> None:
    log = tmp_path / "log"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", OWNER, str(log)], env=env)
    until(lambda: log.is_file() and "there" in log.read_text(), "the child works")
    left = {path.name[:12] for path in short.glob("magpie-*/*") if path.is_dir()}
    assert {name[:5] for name in left} == {"wandb", "torch"}
    run.send_signal(how)
    run.wait()
    until(lambda: not list(short.glob("magpie-*/torchelastic_*")), "the child ends")
    until(lambda: not _swept(short), "all is swept")


def _swept(short: Path) -> list[Path]:
    temporary.sweep()
    return list(short.iterdir())


@pytest.mark.process
def test_what_a_killed_child_leaves_goes_with_its_supervisor(short: Path, tmp_path: Path) -> None:
    code = "import os, tempfile; tempfile.mkdtemp(prefix='vllm_dist_'); os.kill(os.getpid(), 9)"
    child = Supervised([sys.executable, "-c", code], dict(os.environ), tmp_path / "log")
    assert child.wait(60) and child.exit_code == 137
    assert not any(short.iterdir())
