"""`magpie import`: published sets and ShareGPT files into our Parquet form, or into any other, with
what is wrong with them counted."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import polars as pl

from core.errors import UserError, nearest
from core.files import fsync_folder
from synth.published import rows as published
from synth.published.files import files
from synth.published.forms import FORMS, Form

SHARD = 100_000
"""Rows of one file of a folder."""


def main(source: str, out: Path, *, form: str, limit: int | None) -> None:
    """Read `source`, write it to a file or a folder of shards, and print the counts."""
    spare(source, out)
    counted = published.Counted()
    written = write(counted.watch(published.read(source, limit)), out, checked(form))
    for line in lines(counted):
        print(line)
    print(
        f"{written:,} rows written to {out}" + (f" in the form {form}" if form != "magpie" else "")
    )


def spare(source: str | Path, out: Path) -> None:
    """Raises UserError where writing `out` would destroy what is read: `out` is the source, one of
    its files, or a folder that holds it."""
    given, there = Path(source).expanduser(), out.expanduser().resolve()
    if not given.exists():
        return
    here = given.resolve()
    if (
        there == here
        or there in here.parents
        or any(there == file.resolve() for file in files(here))
    ):
        raise UserError(f"--out {out} would replace the source {source}; give another --out.")


def checked(form: str) -> Form:
    """The name of a form. Raises UserError for any other."""
    for known in FORMS:
        if form == known:
            return known
    raise UserError(f"--form {form}: no such form{nearest(form, FORMS)}.")


def lines(counted: published.Counted) -> list[str]:
    """What was read, in words: rows, failed rows by reason, failed tags by column and reason."""
    failed = sum(counted.failed.values())
    said = [f"{counted.rows:,} rows read, {failed:,} of them failed"]
    said += [
        f"  {n:,} x {reason} (first: {counted.examples[reason]})"
        for reason, n in counted.failed.most_common()
    ]
    if counted.tags:
        said.append("failed tags (those rows are kept):")
        said += [
            f"  {column}: {n:,} x {reason}"
            for (column, reason), n in sorted(
                counted.tags.items(), key=lambda item: (item[0][0], -item[1])
            )
        ]
    return said


def write(frames: Iterable[pl.DataFrame], out: Path, form: Form) -> int:
    """Write frames in our form to `out`: one .parquet or .jsonl file, or a folder of Parquet
    shards; returns the rows written.

    Either appears when it is whole. A new shard begins after SHARD rows and where the columns
    change, so files of several kinds go into one folder. Raises UserError when the folder is there
    already.
    """
    if out.suffix in (".parquet", ".jsonl"):
        return published.write(frames, out, form)
    return shards(frames, out, form)


def shards(
    frames: Iterable[pl.DataFrame], folder: Path, form: Form, name: str = "part-{:05d}.parquet"
) -> int:
    """Write a folder of Parquet shards; returns the rows written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists already and is not an empty folder; give another --out, or remove it first."
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows = number = 0
    writer: published.Writer | None = None
    kind: tuple[pl.Schema, str] | None = None
    try:
        with ExitStack() as shard:
            for frame in frames:
                here = (
                    frame.schema,
                    frame["source_columns"][0] if "source_columns" in frame.columns else "",
                )
                if writer is None or writer.rows >= SHARD or here != kind:
                    shard.close()
                    writer, kind = (
                        shard.enter_context(published.Writer(partial / name.format(number), form)),
                        here,
                    )
                    number += 1
                rows += writer.add(frame)
        if writer is None:
            raise UserError("no row was found, so nothing was written.")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
    fsync_folder(folder.parent)
    return rows
