"""Append-only columns: missing cells, failures, parts that overlap."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from core import columns, store
from core.cells import merging, whole
from core.columns import Column
from core.errors import UserError

QUALITY = pl.Enum(["very poor", "poor", "average", "good", "excellent"])


def column(root: Path, **cell: object) -> Column:
    return Column.open(
        root, "quality", cell or {"tagger": "a"}, {"label": QUALITY, "rank": pl.Float64}
    )


def test_missing_lists_what_no_part_holds_in_the_given_order(tmp_path: Path) -> None:
    made = column(tmp_path)
    made.append([{"id": "b", "label": "good", "rank": 4.0}])
    assert made.missing(["c", "b", "a"]) == ["c", "a"]


def test_another_cell_definition_is_another_column(tmp_path: Path) -> None:
    column(tmp_path, tagger="a").append([{"id": "x", "label": "good", "rank": 4.0}])
    assert column(tmp_path, tagger="b").missing(["x"]) == ["x"]


def test_a_failed_cell_is_held_with_its_reason(tmp_path: Path) -> None:
    made = column(tmp_path)
    made.append([{"id": "x", "status": "failed", "reason": "no answer"}])
    assert made.missing(["x"]) == []
    assert made.read().row(0, named=True) == {
        "id": "x",
        "label": None,
        "rank": None,
        "status": "failed",
        "reason": "no answer",
    }


def test_the_part_that_was_cut_first_counts(tmp_path: Path) -> None:
    made = column(tmp_path)
    for label in ("good", "poor"):
        made.append([{"id": "x", "label": label, "rank": 2.0}])
        made.cut()
    assert made.read()["label"].to_list() == ["good"]


def test_a_column_says_what_determines_its_cells(tmp_path: Path) -> None:
    made = column(tmp_path, tagger="a")
    made.append([{"id": "x", "label": "good", "rank": 2.0}])
    assert '"tagger": "a"' in (made.folder / "column.json").read_text()


def test_labels_come_back_ordered(tmp_path: Path) -> None:
    made = column(tmp_path)
    made.append(
        [
            {"id": i, "label": label, "rank": 1.0}
            for i, label in enumerate(["very poor", "excellent", "average"])
        ]
    )
    assert made.read().filter(pl.col("label") >= "average").height == 2


def test_appending_nothing_writes_nothing(tmp_path: Path) -> None:
    made = column(tmp_path)
    made.append([])
    assert not made.folder.exists()


def test_an_unreadable_part_is_one_sentence(tmp_path: Path) -> None:
    made = column(tmp_path)
    made.append([{"id": "x", "label": "good", "rank": 4.0}])
    made.cut()
    (part,) = made.parts()
    part.write_bytes(b"cut")
    with pytest.raises(UserError, match="sets it aside, and a run makes it again"):
        made.read()


def test_a_label_outside_the_declared_ones_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pl.exceptions.InvalidOperationError):
        column(tmp_path).append([{"id": "x", "label": "superb", "rank": 4.0}])


def test_two_runs_cannot_fill_one_column_at_once(tmp_path: Path) -> None:
    with (
        column(tmp_path).alone(),
        pytest.raises(UserError, match="another run is filling"),
        column(tmp_path).alone(),
    ):
        pass


def many(root: Path, parts: int) -> Column:
    made = column(root)
    for n in range(parts):
        made.append([{"id": f"{n}-{i}", "label": "good", "rank": float(i)} for i in range(3)])
        made.cut()
    return made


def test_small_parts_are_merged_and_no_cell_changes(tmp_path: Path) -> None:
    made = many(tmp_path, 30)
    before = made.read().sort("id")
    made.compact(rows=20, files=10)
    assert len(made.parts()) == 5
    assert made.read().sort("id").equals(before)


def test_a_merged_part_keeps_the_place_of_its_first(tmp_path: Path) -> None:
    made = many(tmp_path, 12)
    made.append([{"id": "0-0", "label": "poor", "rank": 9.0}])
    made.compact(rows=10, files=2)
    assert made.read(["0-0"])["label"].to_list() == ["good"]


def test_few_parts_stay_as_they_are(tmp_path: Path) -> None:
    made = many(tmp_path, 3)
    names = made.parts()
    made.compact()
    assert made.parts() == names


def test_a_reader_that_listed_a_part_before_it_was_merged_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = many(tmp_path, 12)
    read, merged = made.part, []

    def late(path: Path, names: Sequence[str] | None = None) -> pl.DataFrame:
        if not merged:
            merged.append(True)
            many_readers.compact(rows=100, files=2)
        return read(path, names)

    many_readers = column(tmp_path)
    monkeypatch.setattr(made, "part", late)
    assert len(made.read()) == 36


def test_a_part_that_is_older_than_a_field_reads_null_there(tmp_path: Path) -> None:
    Column.open(tmp_path, "quality", {"tagger": "a"}, {"label": QUALITY}).append(
        [{"id": "x", "label": "good"}]
    )
    made = column(tmp_path)
    made.append([{"id": "y", "label": "poor", "rank": 2.0}])
    assert made.read().sort("id").rows() == [
        ("x", "good", None, "ok", None),
        ("y", "poor", 2.0, "ok", None),
    ]


def test_cells_of_two_texts_of_one_row_both_stay_when_parts_are_merged(tmp_path: Path) -> None:
    made = Column.open(
        tmp_path, "response", {"responder": "a"}, {"of": pl.String, "response": pl.String}
    )
    for n in range(12):
        made.append(
            [{"id": f"{n % 6}", "of": "old" if n < 6 else "new", "response": f"answer {n}"}]
        )
        made.cut()
    before = made.read().sort("id", "of")
    made.compact(rows=100, files=2)
    assert len(before) == 12 and made.read().sort("id", "of").equals(before)


def test_who_holds_a_column_may_merge_it_and_another_may_not(tmp_path: Path) -> None:
    made, other = many(tmp_path, 12), column(tmp_path)
    with made.alone():
        other.compact(rows=100, files=2)
        assert len(made.parts()) == 12
        made.compact(rows=100, files=2)
        assert len(made.parts()) == 1
        with pytest.raises(UserError, match="another run is filling"), other.alone():
            pass


def test_cells_that_come_one_by_one_are_read_at_once_and_become_a_part_also_by_a_stop(
    tmp_path: Path,
) -> None:
    column = Column(tmp_path / "column", {"value": pl.Int64})
    with pytest.raises(RuntimeError), column.filling() as add:
        for number in range(5):
            add({"id": str(number), "value": number})
            assert sorted(column.read()["value"]) == list(range(number + 1))
        raise RuntimeError
    assert len(column.files()) == 1 and len(column.part(*column.parts())) == 5


# -- journals --------------------------------------------------------------------------------------

WRITER = """
    import sys, time
    from pathlib import Path
    import polars as pl
    from core.columns import Column

    column = Column(Path(sys.argv[1]), {"value": pl.Int64})
    for number in range(int(sys.argv[2]), 10**9):
        column.append([{"id": str(number), "value": number}])
        print(number, flush=True)
        time.sleep(0.005)
"""


def start_writer(folder: Path, first: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), str(first)],
        stdout=subprocess.PIPE,
    )


def told(writer: subprocess.Popen[bytes], cells: int) -> None:
    """Wait until a writer has said that so many cells are kept."""
    assert writer.stdout is not None
    for _ in range(cells):
        assert writer.stdout.readline()


@pytest.mark.process
def test_kill_9_in_the_middle_loses_no_cell_that_was_told_kept_and_the_next_writer_takes_them_up(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "column"
    writer = start_writer(folder)
    told(writer, 50)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert writer.stdout is not None
    kept = 50 + len(writer.stdout.read().split())
    column = Column(folder, {"value": pl.Int64})
    assert column.parts() == []
    assert {str(number) for number in range(kept)} <= {*column.read()["id"]}
    before = column.read().sort("id")
    column.append([{"id": "new", "value": -1}])
    assert len(column.files()) == 1, "one journal: its own, with what the dead writer left"
    assert column.read().filter(pl.col("id") != "new").sort("id").equals(before)


@pytest.mark.process
def test_the_journal_of_a_writer_that_lives_is_read_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "column"
    writer = start_writer(folder)
    told(writer, 5)
    try:
        column = Column(folder, {"value": pl.Int64})
        column.append([{"id": "mine", "value": -1}])
        column.compact(files=0)
        assert {"0", "4", "mine"} <= {*column.read()["id"]}
        assert len(column.files()) == 2 and len(column.parts()) == 1
        told(writer, 5)
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.process
def test_a_reader_beside_writers_and_a_merging_run_never_fails_and_never_misses_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "column"
    writers = [start_writer(folder, first) for first in (0, 500_000_000)]
    column, reader = (Column(folder, {"value": pl.Int64}) for _ in range(2))
    seen: set[str] = set()
    try:
        for turn in range(20):
            for writer in writers:
                told(writer, 1)
            monkeypatch.setattr(columns, "PART_ROWS", 3)
            column.append([{"id": f"{turn}-{n}", "value": n} for n in range(4)])
            if turn % 4 == 0:
                column.compact(files=2, rows=10)
            now = {*reader.read()["id"]}
            assert seen <= now and f"{turn}-3" in now
            seen = now
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


@pytest.mark.parametrize("torn", [b"ce", b"cell\x10\0\0\0\0\0\0\0half", bytes(40)])
def test_a_last_frame_that_is_torn_is_ignored(tmp_path: Path, torn: bytes) -> None:
    made = column(tmp_path)
    made.append([{"id": "x", "label": "good", "rank": 4.0}])
    (journal,) = made.files()
    with journal.open("ab") as file:
        file.write(torn)
    assert column(tmp_path).read()["id"].to_list() == ["x"]


def test_a_journal_becomes_a_part_at_some_thousands_of_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "PART_ROWS", 10)
    made = column(tmp_path)
    for number in range(25):
        made.append([{"id": f"{number}", "label": "good", "rank": math.nan}])
    assert [len(made.part(path)) for path in made.files()] == [10, 10, 5]
    assert len(made.read()) == 25


def test_cells_whose_part_was_cut_before_the_kill_are_not_there_twice(tmp_path: Path) -> None:
    made = column(tmp_path)
    made.append([{"id": "x", "label": "good", "rank": 4.0}])
    (journal,) = made.files()
    left = journal.read_bytes()
    made.cut()
    journal.write_bytes(left)  # killed between both steps
    again = column(tmp_path)
    again.append([{"id": "y", "label": "good", "rank": 4.0}])
    again.cut()
    assert sorted(i for path in again.files() for i in again.part(path)["id"]) == ["x", "y"]


# -- order -----------------------------------------------------------------------------------------


def test_merged_parts_lie_in_the_order_that_is_given_and_other_ids_come_last(
    tmp_path: Path,
) -> None:
    made, order = column(tmp_path), [f"{n:03d}" for n in range(100)]
    shuffled = [*order, "other"]
    random.Random(1).shuffle(shuffled)
    for top in range(0, 101, 10):
        cells = [{"id": i, "label": "good", "rank": 1.0} for i in shuffled[top : top + 10]]
        made.append(cells)
        made.cut()
    made.compact(pl.Series(order), files=2, rows=40)
    found = [made.part(path)["id"].to_list() for path in made.parts()]
    assert [i for part in found for i in part] == [*order, "other"]
    assert [len(part) for part in found] == [40, 40, 21]


def test_a_merge_that_was_killed_is_gone_over_again_and_no_cell_is_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = many(tmp_path, 12)
    before = made.read().sort("id")
    publish, done = made.publish, []

    def dies(cells: pl.DataFrame, stem: str | None = None) -> Path:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(stem)
        return publish(cells, stem)

    monkeypatch.setattr(made, "publish", dies)
    monkeypatch.setattr(merging, "WINDOW_BYTES", 1)
    monkeypatch.setattr(merging, "GROUP", 5)
    with pytest.raises(KeyboardInterrupt):
        made.compact(files=2, rows=5)
    assert made.read().sort("id").equals(before), "while it lies there half done"
    monkeypatch.undo()
    again = column(tmp_path)
    again.compact(files=2, rows=100)
    (part,) = again.parts()
    assert again.part(part).sort("id").equals(before)


def test_a_merge_says_what_disk_it_needs_and_does_not_begin_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said = many(tmp_path, 12), list[str]()
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    made.compact(say=said.append, files=2)
    assert len(made.parts()) == 12 and "12 parts are not merged" in said[0]
    monkeypatch.undo()
    made.compact(say=said.append, files=2)
    assert len(made.parts()) == 1 and "MiB of disk until it is done" in said[1]


# -- stores of other versions ----------------------------------------------------------------------


def test_parts_of_the_layout_before_are_read_as_they_are_and_merged_into_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = column(tmp_path)
    made.folder.mkdir(parents=True)
    for name, ids in (("9-ffaa-000001", "ba"), ("9-aa00-00ff00m112233", "cd")):
        cells = [{"id": i, "label": "good", "rank": 1.0} for i in ids]
        frame = pl.DataFrame(cells).with_columns(
            status=pl.lit("ok"), reason=pl.lit(None, pl.String)
        )
        frame.cast(made.schema).write_parquet(made.folder / f"part-{name}.parquet")
    assert sorted(made.read()["id"]) == ["a", "b", "c", "d"]
    monkeypatch.setattr(merging, "OLD_ROWS", 3)
    made.compact(pl.Series(["a", "b", "c", "d"]))
    (part,) = made.parts()
    assert made.part(part)["id"].to_list() == ["a", "b", "c", "d"]


def test_a_store_of_a_newer_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    column(tmp_path).append([{"id": "x", "label": "good", "rank": 4.0}])
    assert json.loads((tmp_path / "store.json").read_text()) == {"version": store.LAYOUT}
    (tmp_path / "store.json").write_text('{"version": 99}')
    for use in (column, store.Store):
        with pytest.raises(
            UserError, match=r"has layout 99 and this version .* knows layouts up to"
        ):
            use(tmp_path)


def test_a_part_that_nothing_was_kept_of_has_no_digest_to_be_compared_with(tmp_path: Path) -> None:
    folder = tmp_path / "columns" / "quality" / "abc"
    assert not whole.is_known(folder / "part-00000.parquet", tmp_path)
    assert whole.is_known(folder / f"part-00000-{'0' * 32}.parquet", tmp_path)
