"""Append-only columns: missing cells, failures, parts that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

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
    with pytest.raises(UserError, match="remove that file and run again"):
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
