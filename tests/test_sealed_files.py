"""Seals of files, what is remembered of them, and the frames of journals, by themselves."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.cells import journal, seals
from core.cells.damage import Damage
from core.cells.journal import Journal
from core.cells.seals import CHANGED, EMPTIED, GONE, Memory, broken, is_seals, sealed
from core.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files that have lain still for a while."""
    made = tmp_path / "result"
    (made / "below").mkdir(parents=True)
    (made / "one").write_text("first")
    (made / "below" / "two").write_text("second")
    for name in ("one", "below/two"):
        os.utime(made / name, (time.time() - 60, time.time() - 60))
    return made


NAMES = ["one", "below/two"]


def test_a_seal_is_a_files_size_and_digest(folder: Path) -> None:
    assert sealed(folder, NAMES) == {
        "one": {"bytes": 5, "sha256": hashlib.sha256(b"first").hexdigest()},
        "below/two": {"bytes": 6, "sha256": hashlib.sha256(b"second").hexdigest()},
    }
    assert seals.names_below(folder) == ["below/two", "one"]
    assert seals.names_below(folder, ["one"]) == ["below/two"]


def test_what_was_remembered_is_known_until_the_file_changes(folder: Path, tmp_path: Path) -> None:
    of, memory = sealed(folder, NAMES), Memory(tmp_path / "verified")
    memory.remember(folder, of, {"said": 1})
    again = Memory(tmp_path / "verified")
    stat = (folder / "one").stat()
    assert again.held["said"] == 1 and again.digest("one") == of["one"]["sha256"]
    assert again.knows("one", of["one"]["sha256"], stat)
    assert not again.knows("one", of["below/two"]["sha256"], stat)
    os.utime(folder / "one", (time.time() - 50, time.time() - 50))
    assert not again.knows("one", of["one"]["sha256"], (folder / "one").stat())
    assert again.digest("three") is None


def test_of_other_files_only_those_named_are_remembered_on(folder: Path, tmp_path: Path) -> None:
    of, memory = sealed(folder, NAMES), Memory(tmp_path / "verified")
    memory.remember(folder, of, {"said": 1})
    memory.remember(folder, {}, only=["one", "gone"])
    assert memory.digest("one") == of["one"]["sha256"] and memory.digest("below/two") is None
    assert memory.held["said"] == 1  # whatever else was said stays
    memory.remember(folder, {"below/two": of["below/two"]}, {"more": 2}, only=[])
    assert memory.digest("one") is None and memory.digest("below/two") is not None
    assert (memory.held["said"], memory.held["more"]) == (1, 2)


def test_nothing_is_written_where_nothing_is_new(folder: Path, tmp_path: Path) -> None:
    of, memory = sealed(folder, NAMES), Memory(tmp_path / "verified")
    memory.remember(folder, of)
    assert (tmp_path / "verified").exists()
    (tmp_path / "verified").unlink()
    memory.remember(folder, of)
    assert not (tmp_path / "verified").exists()
    memory.remember(folder, {}, {"said": 1})
    assert Memory(tmp_path / "verified").held["said"] == 1


@pytest.mark.parametrize("held", ["", "[1]", '{"files": 3}', '{"files": {"one": "x"}}',
                                  '{"files": {"one": []}}'])  # fmt: skip
def test_a_memory_that_is_damaged_remembers_nothing(tmp_path: Path, held: str) -> None:
    (tmp_path / "verified").write_text(held)
    assert Memory(tmp_path / "verified").digest("one") is None


def test_files_that_are_known_are_sealed_unread(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, memory = sealed(folder, NAMES), Memory(tmp_path / "verified")
    memory.remember(folder, {"one": of["one"]})
    read: list[str] = []
    digest = seals.file_digest
    monkeypatch.setattr(seals, "file_digest", lambda path: read.append(path.name) or digest(path))
    assert memory.sealed(folder, NAMES) == of and read == ["two"]


def test_what_is_wrong_with_files_is_told_by_name(folder: Path, tmp_path: Path) -> None:
    of = sealed(folder, NAMES) | {"gone": {"bytes": 1, "sha256": "0"}}
    (folder / "one").write_text("FIRST")
    assert broken(folder, of, Memory(tmp_path / "v")) == {"one": CHANGED, "gone": GONE}
    (folder / "one").write_text("")
    (folder / "below" / "two").write_text("seconds")
    assert broken(folder, of, Memory(tmp_path / "v")) == {
        "one": EMPTIED, "below/two": CHANGED, "gone": GONE,
    }  # fmt: skip


def test_what_was_read_and_lay_still_is_not_read_again_unless_all_is_read_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, read = sealed(folder, NAMES), list[str]()
    digest = seals.file_digest
    monkeypatch.setattr(seals, "file_digest", lambda path: read.append(path.name) or digest(path))
    # the times of a change cannot be set back
    monkeypatch.setattr(seals, "SETTLED", -60.0)
    for expected, anew in ((2, False), (2, False), (4, True)):
        assert broken(folder, of, Memory(tmp_path / "v"), anew=anew) == {}
        assert len(read) == expected
    monkeypatch.setattr(seals, "SETTLED", 3600.0)
    for expected in (6, 8):  # of what was just made a look tells nothing
        assert broken(folder, of, Memory(tmp_path / "w")) == {} and len(read) == expected


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ({}, True),
        ({"one": {"bytes": 1, "sha256": "0"}}, True),
        ({"one": {"bytes": 1, "sha256": "0", "more": 2}}, True),
        ({"one": {"bytes": 1}}, False),
        ({"one": ["bytes", "sha256"]}, False),
        ({"one": {"bytes": 1, "sha256": "0"}, "two": None}, False),
        ([], False),
        (None, False),
    ],
)
def test_what_has_the_form_of_seals(value: Any, right: bool) -> None:
    assert is_seals(value) == right


def test_the_seal_of_what_a_file_says_is_of_all_but_itself() -> None:
    said = {"a": 1, "b": [2]}
    whole = seals.with_seal(said)
    assert whole["seal"] == seals.seal_of(whole) == seals.seal_of({"b": [2], "a": 1})
    assert seals.seal_of({**said, "a": 2}) != whole["seal"]


def test_a_file_that_may_not_be_read_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    of = sealed(folder, NAMES)
    monkeypatch.setattr(seals, "file_digest", refuses)
    with pytest.raises(UserError, match="cannot be read \\(permission denied\\)"):
        broken(folder, of, Memory(tmp_path / "v"))


# -- journals --------------------------------------------------------------------------------------


def cells(*ids: str) -> pl.DataFrame:
    return pl.DataFrame({"id": list(ids)})


def ids(path: Path, column: str = "") -> list[str]:
    return [name for frame in journal.frames(path, column) for name in frame["id"]]


def test_a_journal_gives_back_its_cells_in_the_order_they_came(tmp_path: Path) -> None:
    made = Journal(tmp_path, "quality")
    made.append(cells("a", "b"))
    made.append(pl.DataFrame({"id": ["c"], "more": [1]}))
    made.append(pl.DataFrame({"id": ["d"], "more": [2]}))
    assert (made.rows, made.size) == (4, made.path.stat().st_size)
    assert ids(made.path, "quality") == ["a", "b", "c", "d"]
    assert [len(frame) for frame in journal.frames(made.path, "quality")] == [2, 2]
    assert journal.journals(tmp_path) == [made.path] and journal.is_journal(made.path)
    made.end()
    assert journal.journals(tmp_path) == []


def test_frames_of_another_column_do_not_count_and_those_of_none_count_anywhere(
    tmp_path: Path,
) -> None:
    quality, nobodys = Journal(tmp_path, "quality"), Journal(tmp_path)
    quality.append(cells("a"))
    nobodys.append(cells("b"))
    assert ids(quality.path) == ["a"] and ids(nobodys.path, "reward") == ["b"]
    noting = Damage(lambda line: None, moves=False)
    with noting.noted():
        assert ids(quality.path, "reward") == []
    assert noting.found[quality.path].startswith(f"{quality.size} bytes of it {CHANGED}")


def test_all_bytes_that_do_not_count_are_told(tmp_path: Path) -> None:
    made = Journal(tmp_path, "quality")
    ends = [0]
    for name in "abcde":
        made.append(cells(name))
        ends.append(made.size)
    data = bytearray(made.path.read_bytes())
    for spoiled in (1, 3, 4):  # the last ones in one piece
        data[ends[spoiled] + 20] ^= 1
    made.path.write_bytes(data)
    noting = Damage(lambda line: None, moves=False)
    with noting.noted():
        assert ids(made.path, "quality") == ["a", "c"]
    lost = ends[2] - ends[1] + ends[5] - ends[3]
    assert noting.found[made.path].startswith(f"{lost} bytes of it")


@pytest.mark.parametrize("left", [1, 3, 4, 11, 12, 20])
def test_what_is_left_of_a_last_frame_is_a_kill_and_no_damage(tmp_path: Path, left: int) -> None:
    made = Journal(tmp_path, "quality")
    made.append(cells("a"))
    whole = made.size
    made.append(cells("b"))
    made.path.write_bytes(made.path.read_bytes()[: whole + left])
    noting = Damage(lambda line: None, moves=False)
    with noting.noted():
        assert ids(made.path, "quality") == ["a"]
    assert not noting.found


def test_a_journal_is_taken_up_only_when_nobody_holds_it(tmp_path: Path) -> None:
    made = Journal(tmp_path)
    made.append(cells("a"))
    with journal.taken_up(made.path) as mine:
        assert not mine
    made._close()
    with journal.taken_up(made.path) as mine:
        assert mine
        with journal.taken_up(made.path) as again:
            assert not again
    with journal.taken_up(tmp_path / "gone.cells") as mine:
        assert not mine
