"""`magpie import`: published sets and ShareGPT files into our Parquet form, or into any other, with
what is wrong with them counted."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import polars as pl

from core.errors import UserError, nearest
from core.files import replacing
from synth.published.files import files
from synth.published.forms import FORMS, Form
from synth.published.rows import Counted, Writer, read
from synth.published.rows import write as write_file

SHARD = 100_000
"""Rows of one file of a folder."""


def main(source: str, out: Path, *, form: str, limit: int | None) -> None:
    """Read `source`, write it to a file or a folder of shards, and print the counts."""
    spare(source, out)
    counted = Counted()
    written = write(counted.watch(read(source, limit)), out, checked(form))
    for line in lines(counted):
        print(line)
    as_form = f" in the form {form}" if form != "magpie" else ""
    print(f"{written:,} rows written to {out}{as_form}")


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
