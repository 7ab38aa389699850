"""What the system, a decoder or a parser raises is one sentence with the path and what to do."""

from __future__ import annotations

import errno
import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from core.errors import UserError, nearest, of_system
from recipes import cli

FULL = Path("/dev/full")


def ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> tuple[int | str | None, str]:
    """Exit code and stderr of a verb that raises `error`."""

    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["magpie", "plan", "demo"])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    return ending.value.code, capsys.readouterr().err


def of(action: Callable[[], object]) -> str:
    """The sentence of what an action raises."""
    try:
        action()
    except Exception as error:
        said = of_system(error)
    assert said is not None
    return said


def opened(number: int) -> OSError:
    return OSError(number, "as the system says it", "/store/results/x")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "no room left for /store/results/x"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "can only be read"),
        (errno.EACCES, "no permission for /store/results/x"),
        (errno.ENOENT, "/store/results/x does not exist"),
        (errno.EISDIR, "is a folder where a file belongs"),
        (errno.ENOTDIR, "below something that is no folder"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "failed at /store/results/x"),
        (errno.ESTALE, "mount it anew"),
        (errno.ENAMETOOLONG, "longer name"),
        (errno.EXDEV, "/store/results/x: Invalid cross-device link"),
    ],
)
def test_an_error_of_the_system_is_a_sentence_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    says: str,
) -> None:
    code, said = ended(monkeypatch, capsys, opened(number))
    assert code == 2 and says in said and "defect" not in said and said.count("\n") == 1


def test_a_full_disk_says_how_much_is_free(tmp_path: Path) -> None:
    said = of_system(OSError(errno.ENOSPC, "x", str(tmp_path / "deep" / "file")))
    assert said is not None and "MiB free" in said


def test_what_really_cannot_be_written_is_named() -> None:
    said = of(lambda: FULL.write_bytes(b"x" * 100_000))
    assert "/dev/full" in said and "no room left" in said


def test_polars_full_disk_is_one_too() -> None:
    said = of(lambda: pl.DataFrame({"a": range(100_000)}).write_parquet(FULL))
    assert "no room left" in said


def unpacked(path: Path) -> bytes:
    with gzip.open(path) as handle:
        return handle.read()


@pytest.mark.parametrize(
    ("content", "read", "says"),
    [
        (b"\xff\xfe", lambda p: p.read_text(encoding="utf-8"), "no UTF-8 text"),
        (b"{", lambda p: json.loads(p.read_text()), "not valid JSON"),
        (gzip.compress(b"x" * 999)[:-5], unpacked, "cut off or damaged"),
        (b"no gzip at all", unpacked, "Not a gzipped file"),
    ],
    ids=["latin", "json", "cut", "plain"],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, content: bytes, read: Callable[[Path], object], says: str
) -> None:
    path = tmp_path / "given.json"
    path.write_bytes(content)
    said = of(lambda: read(path))
    assert says in said and str(path) in said


def test_what_many_tasks_raised_is_looked_through() -> None:
    group = ExceptionGroup("tasks", [ValueError("no"), ExceptionGroup("of one", [opened(28)])])
    said = of_system(group)
    assert said is not None and "no room left" in said


def test_what_an_error_was_raised_from_counts() -> None:
    wrapped = RuntimeError("writing failed")
    wrapped.__cause__ = opened(errno.EROFS)
    said = of_system(wrapped)
    assert said is not None and "can only be read" in said
    wrapped.__cause__ = UserError("just this.")
    assert of_system(wrapped) == "just this."


def test_a_text_that_cannot_be_written_is_shown() -> None:
    said = of(lambda: "a\ud800".encode())
    assert "\\ud800" in said


def test_a_refused_connection_is_no_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = ended(monkeypatch, capsys, ConnectionRefusedError(111, "Connection refused"))
    assert code == 2 and "a connection failed" in said


@pytest.mark.parametrize(
    "error", [KeyError("x"), ValueError("odd"), pl.exceptions.PanicException()]
)
def test_a_defect_stays_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    code, said = ended(monkeypatch, capsys, error)
    assert code == 1 and "a defect" in said


def test_what_follows_a_hint_is_a_sentence_of_its_own() -> None:
    hint = nearest("longst", ["longest", "all"])
    assert str(UserError(f"no 'longst'{hint}; there are two.")) == (
        "no 'longst'; did you mean 'longest'? There are two."
    )


@pytest.mark.parametrize(("free", "full"), [(2**20 - 1, True), (2**20, False)])
def test_a_writer_that_does_not_say_that_the_disk_is_full_is_asked_about_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, full: bool
) -> None:
    """What polars says where the footer of a Parquet file has no room; met on a full disk."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))

    def write(path: Path) -> None:
        said = "parquet: File out of specification: Invalid thrift: transport error"
        raise pl.exceptions.ComputeError(said)

    try:
        write(tmp_path / "part.parquet")
    except pl.exceptions.ComputeError as error:
        said = of_system(error)
    if full:
        assert said is not None
        assert said.startswith(f"there is no room left for {tmp_path} (1 MiB free); free some")
    else:
        assert said is None
