"""Filling a pool with rows that exist: published sets and their tags, copied into columns."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from core.cells.seals import with_seal
from core.columns import FAILED, MESSAGES, OK
from core.files import read_json, write_atomic
from core.tracking import Log
from synth.config.rows import ImportConfig
from synth.measures import TOKENS, Measures
from synth.pool.columns import INSTRUCTION_FIELDS
from synth.pool.pool import Pool
from synth.pool.short_columns import digest_pairs, digest_texts
from synth.published import files
from synth.published.files import Notes
from synth.published.forms import of_turn, or_null, sampling_fields
from synth.published.rows import read
from synth.published.turns import TOOL_ROLES

if TYPE_CHECKING:
    from synth.measures import PolarsTypes

_LANGUAGE = of_turn("column") == "language"
_NOT_BROUGHT = (*TOKENS, "all_tokens", "finish_reason")
"""Fields of cells that were bought: what a published set cost is not what this pool cost."""


def import_rows(pool: Pool, source: ImportConfig, log: Log) -> None:
    """Copy published rows and their tags into columns: an absent column is unmeasured, a null in a
    present one is a failed cell.

    One that was killed begins again: what it had copied is then there twice, and alike, which
    columns allow.
    """
    path, source = str(source.import_), _at_one_commit(pool, source, log)
    fields = {name: kind for name, kind in INSTRUCTION_FIELDS.items() if name != "tokens"}
    done = 0
    notes = Notes()
    for batch in read(path, source.limit, how=source, notes=notes):
        index = pl.int_range(done, done + len(batch), dtype=pl.Int64)
        model = pl.coalesce("model", pl.lit(path)) if "model" in batch.columns else pl.lit(path)
        rows = _unfolded(batch).with_columns(index=index, model=model)
        pool.instruction.append(_typed(rows, fields))
        for measure, cells in _cells(rows, pool.measures).items():
            pool.imports[measure].append(cells)
        done += len(batch)
        log.progress(done, source.limit)
    for line in (*notes.layouts, *(f"{n:,} {what}" for what, n in notes.remarks.items())):
        log.say(f"instructions: {line}")
    for why in notes.unreadable.values():
        log.say(f"instructions: not read: {why}")
    own = {"own": pool.own_columns} if pool.own_columns else {}
    write_atomic(pool.import_marker, json.dumps(with_seal({"limit": source.limit, **own})))


def _at_one_commit(pool: Pool, source: ImportConfig, log: Log) -> ImportConfig:
    """A data set of the hub at the commit that an import has begun with, whatever became of it
    since: one that was killed, or that asks for more rows, goes on with the same data."""
    path = str(source.import_)
    if any(isinstance(each, Path) for each in files.sources(path)):
        return source
    note = pool.instruction.folder / "commit.json"
    if note.is_file():
        commit = str(read_json(note)["commit"])
    else:
        commit = files.commit(path, source.revision)
        write_atomic(note, json.dumps({"commit": commit}))
    log.say(f"instructions: {path} is read at its commit {commit[:12]}")
    return source.model_copy(update={"revision": commit})


def _unfolded(batch: pl.DataFrame) -> pl.DataFrame:
    """Published rows with what their sampling struct and their conversations say as columns of
    ours."""
    batch = batch.with_columns(or_null("messages", batch.columns, MESSAGES))
    asked = pl.col("messages").list.eval(of_turn("role") == "user")
    tools = pl.col("messages").list.eval(of_turn("role").is_in(TOOL_ROLES))
    batch = batch.with_columns(
        turns=asked.list.sum().cast(pl.Int64), tool_turns=tools.list.any().fill_null(False)
    )
    stated = [c for c in ("licence", "license") if batch.schema.get(c) == pl.String]
    if stated:
        batch = batch.with_columns(licence=pl.coalesce(stated))
    known = sampling_fields(batch.schema)
    return batch.with_columns(
        pl.col("gen_input_config").struct.field(name).cast(pl.Float64, strict=False)
        for name in ("temperature", "top_p")
        if name in known and name not in batch.columns
    )


def _cells(rows: pl.DataFrame, measures: Measures) -> dict[str, pl.DataFrame]:
    """The cells that rows bring, by measure."""
    texts = digest_texts(rows["instruction"])
    of = {"of": texts, "of_pair": texts}
    if "response" in rows.columns:
        of["of_pair"] = digest_pairs(texts, digest_texts(rows["response"]))
    brought: dict[str, pl.DataFrame] = {}
    for measure, declared in measures.table.items():
        fields = {n: kind for n, kind in declared.stored.items() if n not in _NOT_BROUGHT}
        cells = _typed(rows.drop("status", "reason"), fields)
        if measure == "text" or cells.width == 1:
            continue
        null = pl.col(cells.columns[1]).is_null()
        if measure == "response":  # an empty answer is none
            null |= pl.col("response").str.strip_chars() == ""
        cells = cells.with_columns(
            status=pl.when(null).then(pl.lit(FAILED)).otherwise(pl.lit(OK)),
            reason=pl.when(null).then(pl.lit("null in the imported data")),
            of=of[declared.of],
        )
        if measure == "language":  # a null is not measured, unless it stands for what was no label
            cells = cells.filter(~null | rows["failed_tags"].list.eval(_LANGUAGE).list.any())
        # Instruction and response alone are no failed conversation: they may still be continued.
        brought[measure] = cells.drop_nulls("messages") if measure == "turns" else cells
    return brought


def _typed(frame: pl.DataFrame, fields: PolarsTypes) -> pl.DataFrame:
    """[id, those of the fields that the frame has, status, reason] in our types.

    A value of another kind is null; a column of another kind altogether, which only shares a name
    of ours, is left out.
    """
    kept = [frame["id"]]
    for name in (n for n in fields if n in frame.columns):
        with suppress(pl.exceptions.PolarsError):
            kept.append(frame[name].cast(fields[name], strict=False))
    return pl.DataFrame([*kept, *(frame[n] for n in ("status", "reason") if n in frame.columns)])
