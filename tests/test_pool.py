"""The pool: what it keeps in memory, and that a filter, a slice and a snapshot read the same
words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core import columns as core_columns
from core.models import Model
from core.servers import Servers
from core.store import digest
from core.tracking import Log
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.measures import COLUMNS
from synth.pool import columns as pool_columns
from synth.pool import draw as drawing
from synth.pool import importing, short_columns
from synth.pool import pool as pools
from synth.pool.columns import PoolColumns
from synth.pool.draw import draw
from synth.pool.pool import Pool
from tests.test_published import row25

WORDS = "a long instruction, word after word " * 200


def opened(root: Path, rows: int = 50) -> Pool:
    settings = SynthConfig.model_validate({"teacher": {"model": "m"}, "rows": rows})
    return Pool(settings, Context(root, lambda name, revision: Model(name, name, "r1")))


def filled(root: Path, rows: int = 50, before: str = "") -> Pool:
    """A pool of `rows` long instructions of which the even ones are answered."""
    made = opened(root, rows)
    planned = made.planned
    for part in planned.iter_slices(7):
        texts = [f"{before}{i} {WORDS}" for i in part["index"].to_list()]
        made.instruction.append(
            part.with_columns(
                pl.Series("instruction", texts),
                pl.lit("stop").alias("finish_reason"),
                pl.lit(5).alias("tokens"),
            )
        )
        made.instruction.cut()
    frame = made.frame()
    even = frame.filter(pl.col("index") % 2 == 0).select(
        "id", "of", pl.lit("stop").alias("finish_reason"), pl.col("id").alias("response")
    )
    made.columns["response"].append(even)
    made.columns["response"].cut()
    return made


def test_the_frame_holds_no_words(tmp_path: Path) -> None:
    frame = filled(tmp_path).frame()
    assert not [n for n in frame.columns if n in COLUMNS and COLUMNS[n][1].long]
    assert frame.estimated_size() < 50 * 2000, "an instruction alone has 7,200 characters"


def test_every_declared_column_that_is_not_long_is_there_even_if_nothing_measures_it(
    tmp_path: Path,
) -> None:
    frame = filled(tmp_path).frame()
    assert {n for n, (_, f) in COLUMNS.items() if not f.long} <= {*frame.columns, "system_prompt"}


def test_a_text_that_a_filter_names_is_read(tmp_path: Path) -> None:
    frame = filled(tmp_path).frame(["instruction", "response"])
    assert frame["instruction"].to_list() == [f"{i} {WORDS}" for i in range(50)]
    assert frame.filter(pl.col("response").is_not_null())["index"].to_list() == list(
        range(0, 50, 2)
    )


def test_texts_come_in_the_order_of_the_rows(tmp_path: Path) -> None:
    made = filled(tmp_path)
    backwards = made.frame().reverse()
    assert made.texts(backwards, ["instruction"])["instruction"].str.slice(
        0, 2
    ).str.strip_chars().to_list()[:3] == ["49", "48", "47"]


def test_a_slice_reads_only_the_parts_that_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(tmp_path)
    frame = made.frame()
    read: list[Path] = []
    column = made.instruction
    plain = column.rows
    monkeypatch.setattr(column, "rows", lambda path, *of: read.append(path) or plain(path, *of))
    made.texts(frame.slice(7, 7), ["instruction"])
    assert read == [column.parts()[1]]


def test_a_response_of_an_instruction_made_anew_counts_as_unmeasured_and_can_be_had_again(
    tmp_path: Path,
) -> None:
    made = filled(tmp_path)
    row = made.frame().row(0, named=True)
    for number, part in enumerate(made.instruction.parts()):
        text = (
            pl.when(pl.col("id") == row["id"])
            .then(pl.lit("other words"))
            .otherwise("instruction")
            .alias("instruction")
        )
        other = part.with_name(f"part-t{number}.parquet")
        pl.read_parquet(part).with_columns(text).write_parquet(other)
        part.unlink()
    again = opened(tmp_path)
    changed = again.frame().row(0, named=True)
    assert changed["status:response"] is None
    again.columns["response"].append(
        [{"id": row["id"], "of": changed["of"], "response": "new", "finish_reason": "stop"}]
    )
    assert again.frame(["response"]).row(0, named=True)["response"] == "new"


def test_a_snapshot_holds_the_frame_and_all_texts_whatever_the_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "SLICE", 8)
    made = filled(tmp_path)
    frame = made.frame()
    made.snapshot(frame, tmp_path / "pool.parquet")
    held = pl.read_parquet(tmp_path / "pool.parquet")
    assert held["id"].to_list() == frame["id"].to_list()
    assert held["instruction"].str.len_chars().min() == len(f"0 {WORDS}")
    assert held["response"].null_count() == 25


def test_a_killed_import_is_read_to_its_end_and_a_higher_limit_imports_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {
            "uuid": f"u{i}",
            "instruction": f"Why {i}?",
            "response": f"Because {i}.",
            "input_quality": "good",
        }
        for i in range(30)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def imported(limit: int | None) -> Pool:
        source = {"import": str(tmp_path / "rows.jsonl"), "limit": limit}
        settings = SynthConfig.model_validate({"teacher": {"model": "m"}, "rows": source})
        return Pool(
            settings, Context(tmp_path / "store", lambda name, revision: Model(name, name, "r1"))
        )

    whole = importing.read

    def dies(path: str, limit: int | None, **how: Any) -> Iterator[pl.DataFrame]:
        for number, batch in enumerate(whole(path, limit, batch=8, **how)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    with Servers(Log(), tmp_path) as servers:
        monkeypatch.setattr(importing, "read", dies)
        with pytest.raises(KeyboardInterrupt):
            drawing.draw(imported(20), servers, Log())
        assert len(imported(20).frame()) == 16 and imported(20).to_import()
        monkeypatch.setattr(importing, "read", whole)
        assert drawing.draw(imported(20), servers, Log())["rows"] == 20
        assert (
            not imported(20).to_import()
            and not imported(10).to_import()
            and imported(None).to_import()
        )
        assert drawing.draw(imported(None), servers, Log())["rows"] == 30
    frame = imported(None).frame()
    assert frame["id"].n_unique() == len(frame) == 30
    assert set(frame["status:quality"]) == set(frame["status:response"]) == {"ok"}
    assert not imported(5).to_import() and len(imported(5).frame()) == 5


def test_what_is_computed_from_the_words_of_a_large_part_is_read_from_disk_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_columns, "REMEMBERED", 5)
    before = filled(tmp_path).frame()
    computed: list[int] = []
    plain = short_columns.text_figures.instruction_columns
    monkeypatch.setattr(
        short_columns.text_figures,
        "instruction_columns",
        lambda rows: computed.append(len(rows)) or plain(rows),
    )
    assert opened(tmp_path).frame().equals(before)
    assert sum(computed) <= 1, (
        "parts of seven rows are remembered, the last one of a single row is not"
    )


def test_a_damaged_memory_of_a_part_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_columns, "REMEMBERED", 5)
    before = filled(tmp_path).frame()
    for remembered in tmp_path.rglob("short/*.parquet"):
        remembered.write_bytes(b"torn")
    assert opened(tmp_path).frame().equals(before)


def test_what_is_remembered_of_parts_that_were_merged_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_columns, "REMEMBERED", 5)
    made = filled(tmp_path)
    before = made.frame()
    assert len(list(made.instruction.folder.glob("short/*"))) == 7
    made.instruction.compact(files=2)
    assert opened(tmp_path).frame().equals(before)
    (merged,) = made.instruction.parts()
    (remembered,) = made.instruction.folder.glob("short/*")
    assert remembered.name.startswith(f"{merged.stem}-")


def test_other_text_columns_are_not_taken_from_an_older_versions_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_columns, "REMEMBERED", 5)
    filled(tmp_path).frame()
    monkeypatch.setattr(short_columns.text_figures, "VERSION", 99)
    monkeypatch.setattr(
        short_columns.text_figures,
        "instruction_columns",
        lambda rows: rows.select("id", pl.lit(7, pl.Int64).alias("instruction_length")),
    )
    assert set(opened(tmp_path).frame()["instruction_length"].to_list()) == {7}


def imported(root: Path, rows: list[dict[str, object]], **synth: object) -> Pool:
    """A pool of published rows."""
    pl.from_dicts(rows, infer_schema_length=None).write_parquet(root / "set.parquet")
    config = SynthConfig.model_validate(
        {"teacher": {"model": "m"}, "rows": {"import": str(root / "set.parquet")}, **synth}
    )
    made = Pool(config, Context(root, lambda name, revision: Model(name, name, "r1")))
    with Servers(Log(), root / "logs") as servers:
        draw(made, servers, Log())
    return made


def test_ranks_and_safety_follow_from_what_was_imported(tmp_path: Path) -> None:
    rows = [
        row25(0, input_quality="good", llama_guard_2="unsafe\nS1"),
        row25(1, input_quality="poor", llama_guard_2="safe"),
    ]
    frame = imported(tmp_path, rows).frame()
    assert frame["input_quality_rank"].to_list() == [4.0, 2.0] and frame["safety"].to_list() == [
        "unsafe",
        "safe",
    ]


def test_what_the_imported_rows_lack_is_measured_when_a_filter_asks_for_it(tmp_path: Path) -> None:
    made = imported(tmp_path, [row25(0), row25(1)])
    assert made.frame(["min_neighbor_distance"])["status:neighbors"].to_list() == ["ok", "ok"]
    assert made.frame(["neighbor_group_duplicate"])["status:neighbors"].null_count() == 2


@pytest.mark.parametrize("known", [None, "zz"])
def test_near_duplicates_are_looked_for_where_imported_rows_do_not_say_whom_they_repeat(
    tmp_path: Path, known: str | None
) -> None:
    rows = [row25(n, min_similar_uuid=known, repeat_count=1) for n in range(2)]
    made = imported(tmp_path, rows)
    frame = made.frame({"near_duplicate"})
    assert frame["status:neighbors"].to_list() == ["ok" if known else None] * 2
    assert frame["near_duplicate"].to_list() == [True if known else None] * 2
    assert made.frame()["min_neighbor_distance"].null_count() == 0, "nobody asked"


def test_imported_pairs_have_one_turn(tmp_path: Path) -> None:
    talk = [
        {"from": w, "value": v}
        for w, v in (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))
    ]
    frame = imported(
        tmp_path, [row25(0), row25(1, conversations=talk, instruction="a", response="b")]
    ).frame()
    assert frame["turns"].to_list() == [1, 2] and frame["status:turns"].to_list() == ["ok", "ok"]


def test_a_column_that_only_shares_a_name_with_ours_is_left_out(tmp_path: Path) -> None:
    frame = imported(
        tmp_path,
        [
            {**row25(i), "safety": "Safe", "seed": "abc", "tokens": [1, 2], "system_prompt": ["x"]}
            for i in range(2)
        ],
    ).frame()
    assert len(frame) == 2 and frame["instruction_tokens"].null_count() == 2


def test_a_pool_whose_texts_are_cleaned_keeps_the_cells_of_the_raw_texts_when_parts_are_merged(
    tmp_path: Path,
) -> None:
    filled(tmp_path, before="**Task:** ")
    settings = SynthConfig.model_validate(
        {"teacher": {"model": "m"}, "rows": 50, "sanitize": "gemma"}
    )
    cleaned = Pool(settings, Context(tmp_path, lambda name, revision: Model(name, name, "r1")))
    frame = cleaned.frame()
    assert frame["of"].to_list() != opened(tmp_path).frame()["of"].to_list(), (
        "the sanitizer took something off"
    )
    for part in frame.select(
        "id", "of", pl.lit("new").alias("response"), pl.lit("stop").alias("finish_reason")
    ).iter_slices(5):
        cleaned.columns["response"].append(part)
        cleaned.columns["response"].cut()
    cleaned.columns["response"].compact(files=2)
    assert opened(tmp_path).frame()["status:response"].null_count() == 25
    assert cleaned.frame()["status:response"].null_count() == 0


def test_merged_parts_lie_in_the_order_of_the_pool_and_keep_what_was_worked_out_of_their_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_columns, "REMEMBERED", 1)
    made = opened(tmp_path)
    for part in made.planned.sample(fraction=1, shuffle=True, seed=1).iter_slices(5):
        texts = pl.format("{} words", "index").alias("instruction")
        made.instruction.append(part.with_columns(texts, finish_reason=pl.lit("stop")))
        made.instruction.cut()
    before = made.frame()
    computed: list[int] = []
    plain = short_columns.text_figures.instruction_columns
    monkeypatch.setattr(
        short_columns.text_figures,
        "instruction_columns",
        lambda rows: computed.append(len(rows)) or plain(rows),
    )
    assert made.merge(print, files=2) == {"files": 10, "merged": 1}
    (part,) = made.instruction.parts()
    assert made.instruction.part(part)["id"].to_list() == before["id"].to_list()
    assert opened(tmp_path).frame().equals(before)
    assert sum(computed) == 0


def test_the_digest_of_a_pool_is_that_of_its_ids_and_texts_as_two_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_columns, "_AT_ONCE", 7)
    made = filled(tmp_path)
    frame = made.frame()
    whole = digest([frame["id"].to_list(), frame["of"].to_list()])
    cells = {**made.cells["minhash"], "pool": whole}
    column = made.column("minhash", frame)
    assert column is not None and column.folder.name == digest(cells)[:16]


def test_a_pass_in_slices_decodes_each_row_of_the_pool_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight tasks fill the pool in turns, and the slices of a pass lie across their parts."""
    made = opened(tmp_path, 4000)
    monkeypatch.setattr(core_columns, "GROUP", 20)
    for share in range(8):
        places = drawing.mine(made.planned, (share, 8))
        writer = opened(tmp_path, 4000).instruction
        for part in places.iter_slices(100):
            writer.append(
                part.with_columns(instruction=pl.lit("why"), finish_reason=pl.lit("stop"))
            )
            writer.cut()
    frame = made.frame()
    decoded: list[int] = []
    read = core_columns.Column._read

    def counting(column: Any, path: Path, names: Any, run: Any = None) -> pl.DataFrame:
        if "instruction" in (names or ()):
            decoded.append(run[1])
        return read(column, path, names, run)

    monkeypatch.setattr(core_columns.Column, "_read", counting)
    assert sum(len(part.drop_nulls()) for part in made.instructions(frame)) == 4000
    monkeypatch.setattr(pools, "SLICE", 200)
    decoded.clear()
    assert sum(len(part.drop_nulls()) for part in made.instructions(frame)) == 4000
    assert sum(decoded) <= 1.1 * 4000


@pytest.mark.parametrize("answers", ["keep", "missing", "all"])
@pytest.mark.parametrize("tags", ["keep", "anew"])
def test_what_rows_brought_counts_before_what_is_measured_unless_all_is_made_anew(
    tmp_path: Path, answers: str, tags: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    rows = {"import": str(tmp_path / "rows.jsonl"), "answers": answers, "tags": tags}
    quality = {"model": {"model": "tagger"}}
    config = SynthConfig.model_validate(
        {"teacher": {"model": "m"}, "rows": rows, "tags": {"quality": quality}}
    )
    held = PoolColumns(config, Context(tmp_path, lambda name, _: Model(name, name, "r1")))

    def sources(measure: str) -> list[str]:
        imported = held.imports.get(measure)
        every = held.sources(measure)
        return ["brought" if lean.column is imported else "measured" for lean in every]

    both = ["brought", "measured"]
    assert sources("quality") == (["measured"] if tags == "anew" else both)
    assert sources("response") == (["measured"] if answers == "all" else both)
    assert sources("turns") == ["brought"] and sources("text") == ["measured"]
