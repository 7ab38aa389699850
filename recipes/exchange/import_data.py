"""`magpie import`: published sets and ShareGPT files into our Parquet form, or into any other, with
what is wrong with them counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import OK
from core.errors import UserError, nearest
from core.files import replacing
from synth.config.rows import Reading
from synth.published import pairs
from synth.published.files import AS_IT_IS, Notes, files
from synth.published.forms import FORMS, Form
from synth.published.rows import Counted, Writer, read
from synth.published.rows import write as write_file
from synth.published.to_ours import OWN_COLUMNS

SHARD = 100_000
"""Rows of one file of a folder."""
WIDTH = 160
"""Characters of a text that `--head` shows."""
_SHOWN = ("instruction", "thinking", "response")


Told = dict[str, Any]
"""What was done, as plain data."""


@dataclass(frozen=True)
class Wanted:
    """What is to become of a source: its form, how many rows, or only a look at the first; and
    whether as `sft` or as `preferences`."""

    form: str = "magpie"
    limit: int | None = None
    head: int | None = None
    as_: str | None = None


def verb(source: str, out: Path | None, wanted: Wanted, how: Reading) -> Told:
    """`magpie import`. Raises UserError for options that do not go together."""
    for option, rows in (("--limit", wanted.limit), ("--head", wanted.head)):
        if rows is not None and rows < 1:
            raise UserError(f"{option} {rows}: give a number of rows from 1 on.")
    if wanted.head is not None:
        return show_head(source, wanted.head, how)
    if out is None:
        raise UserError("say where to write: --out FILE.parquet, or --head 5 for a look only.")
    if wanted.as_ == "preferences":
        if wanted.form != "magpie":
            raise UserError("--as preferences writes TRL's form; leave --form out.")
        return preferences(source, out, limit=wanted.limit, how=how)
    return main(source, out, form=wanted.form, limit=wanted.limit, how=how)


def main(source: str, out: Path, *, form: str, limit: int | None, how: Reading = AS_IT_IS) -> Told:
    """Read `source`, write it to a file or a folder of shards, and print how it was taken and the
    counts, which are returned too."""
    spare(source, out)
    counted, notes = Counted(), Notes()
    rows = read(source, limit, how=how, prompts=None, notes=notes)
    written = write(counted.watch(told(rows, notes)), out, checked(form))
    for line in [*lines(counted), *remarks(notes)]:
        print(line)
    as_form = f" in the form {form}" if form != "magpie" else ""
    print(f"{written:,} rows written to {out}{as_form}")
    return _counts(counted, notes) | {"written": written, "form": form, "out": str(out)}


def preferences(source: str, out: Path, *, limit: int | None, how: Reading) -> Told:
    """Read preference data, write TRL's form of it, and print the counts."""
    spare(source, out)
    counted, notes = Counted(), Notes()
    rows = counted.watch(told(pairs.read(source, limit, how, notes), notes))
    good = (frame.filter(pl.col("status") == OK) for frame in rows)
    written = write((f.drop("status", "reason", "failed_tags") for f in good), out, "magpie")
    for line in [*lines(counted), *remarks(notes)]:
        print(line)
    print(f"{written:,} rows of preference data written to {out}")
    return _counts(counted, notes) | {"written": written, "form": "TRL", "out": str(out)}


def _counts(counted: Counted, notes: Notes) -> Told:
    """What was read, as plain data."""
    firsts = {
        reason: {"rows": n, "first": counted.examples[reason]}
        for reason, n in counted.failed.items()
    }
    tags = [
        {"column": column, "reason": reason, "cells": n}
        for (column, reason), n in counted.tags.items()
    ]
    return {"read": counted.rows, "failed": firsts, "failed_tags": tags, **asdict(notes)}


def show_head(source: str, rows: int, how: Reading) -> Told:
    """Print how a source is taken and what its first rows then are; nothing is written."""
    notes, shown = Notes(), list[dict[str, Any]]()
    for frame in told(read(source, rows, how=how, prompts=None, notes=notes), notes):
        extra = [c for c in frame.columns if c not in (*_SHOWN, *OWN_COLUMNS, "id")]
        print(f"other columns: {', '.join(extra) or 'none'}")
        for row in frame.iter_rows(named=True):
            shown.append({n: row[n] for n in ("id", *_SHOWN, "messages", "reason") if row.get(n)})
            print(f"{row['id']}" + (f" FAILED: {row['reason']}" if row["reason"] else ""))
            for name in (n for n in _SHOWN if row.get(n)):
                print(f"  {name}: {' '.join(row[name].split())[:WIDTH]}")
            if row["messages"]:
                print(
                    f"  messages: {', '.join(turn['role'] or 'nobody' for turn in row['messages'])}"
                )
    if not shown:
        raise UserError(f"{source} holds no rows.")
    for line in remarks(notes):
        print(line)
    return {"rows": shown, **asdict(notes)}


def told(frames: Iterable[pl.DataFrame], notes: Notes) -> Iterator[pl.DataFrame]:
    """The same frames; how they were taken is printed as soon as it is known."""
    known = 0
    for frame in frames:
        for line in list(notes.layouts)[known:]:
            print(line)
        known = len(notes.layouts)
        yield frame


def remarks(notes: Notes) -> list[str]:
    """What was done to rows, and which files could not be read, in words."""
    done = [f"{n:,} {what}" for what, n in notes.remarks.items()]
    return done + [f"not read: {why}" for why in notes.unreadable.values()]


def spare(source: str | Path, out: Path) -> None:
    """Raises UserError where writing `out` would destroy what is read: `out` is the source, one of
    its files, or a folder that holds it."""
    given, there = Path(source).expanduser(), out.expanduser().resolve()
    if not given.exists():
        return
    here = given.resolve()
    if there in (here, *here.parents, *(file.resolve() for file in files(here))):
        raise UserError(f"--out {out} would replace the source {source}; give another --out.")


def checked(form: str) -> Form:
    """The name of a form. Raises UserError for any other."""
    for known in FORMS:
        if form == known:
            return known
    raise UserError(f"--form {form}: no such form{nearest(form, FORMS)}.")


def lines(counted: Counted) -> list[str]:
    """What was read, in words: rows, failed rows by reason, failed tags by column and reason."""
    report = [f"{counted.rows:,} rows read, {counted.failed.total():,} of them failed"]
    for reason, n in counted.failed.most_common():
        report.append(f"  {n:,} x {reason} (first: {counted.examples[reason]})")
    if counted.tags:
        report.append("failed tags (those rows are kept):")
    by_column = sorted(counted.tags.items(), key=lambda tag: (tag[0][0], -tag[1]))
    for (column, reason), n in by_column:
        report.append(f"  {column}: {n:,} x {reason}")
    return report


def write(frames: Iterable[pl.DataFrame], out: Path, form: Form) -> int:
    """Write frames in our form to `out`: one .parquet or .jsonl file, or a folder of Parquet
    shards; returns the rows written.

    Either appears when it is whole. A new shard begins after SHARD rows and where the columns
    change, so files of several kinds go into one folder. Raises UserError when the folder is there
    already.
    """
    if out.suffix in (".parquet", ".jsonl"):
        return write_file(frames, out, form)
    check_new(out)
    with replacing(out) as folder:
        return shards(frames, folder, form)


def check_new(folder: Path) -> None:
    """Raises UserError where a folder to write is there already and holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists already and is not an empty folder; "
            "give another --out, or remove it first."
        )


def shards(
    frames: Iterable[pl.DataFrame], folder: Path, form: Form, name: str = "part-{:05d}.parquet"
) -> int:
    """Write Parquet shards into a folder; returns the rows written. Raises UserError where there is
    no row."""
    writers: list[Writer] = []
    kind: tuple[pl.Schema, str] | None = None
    with ExitStack() as shard:
        for frame in frames:
            source = frame["source_columns"][0] if "source_columns" in frame.columns else ""
            if not writers or writers[-1].rows >= SHARD or (frame.schema, source) != kind:
                shard.close()
                kind = (frame.schema, source)
                writer = Writer(folder / name.format(len(writers)), form)
                writers.append(shard.enter_context(writer))
            writers[-1].add(frame)
    if not writers:
        raise UserError("no row was found, so nothing was written.")
    return sum(writer.rows for writer in writers)
