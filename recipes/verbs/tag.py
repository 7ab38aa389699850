"""`magpie tag`: measuring any file, or comparing a tagger with the labels that one has; what is
printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from recipes.exchange import tag_check, tag_data
from recipes.exchange.tag_check import Compared
from recipes.exchange.tag_data import Tagger, Written
from recipes.verbs.terminal import say, table
from synth.config.rows import Reading
from synth.pool.mode_agreement import sentence

SAMPLE = 1000
"""Rows that `--check` compares."""


@dataclass(frozen=True)
class Shown:
    """How many rows are taken, and how what came of it is printed."""

    limit: int | None = None
    as_json: bool = False


@dataclass(frozen=True)
class Wanted:
    """Where tagged rows go."""

    out: Path | None = None
    store: Path | None = None
    form: str = "same"
    check: str | None = None
    """A file whose labels a tagger is compared with, in place of writing anything."""
    sample: int = SAMPLE


def verb(
    data: str | None, columns: str, tagger: Tagger, wanted: Wanted, how: Reading, shown: Shown
) -> None:
    """`magpie tag`. Raises UserError for options that do not go together."""
    if wanted.check is not None:
        if data is not None or wanted.out is not None or not columns:
            raise UserError(
                "--check FILE compares with the labels of that file and writes nothing: "
                "magpie tag --check FILE --columns quality --model MODEL."
            )
        check(wanted.check, columns, tagger, wanted, how, shown)
        return
    if data is None or wanted.out is None or not columns:
        raise UserError(
            "say what to measure and where to write: "
            "magpie tag DATA --columns quality,language --out FILE.parquet."
        )
    written = Written(wanted.out, wanted.store, wanted.form)
    main(data, columns, tagger, written, how, shown)


def main(
    source: str, columns: str, tagger: Tagger, written: Written, how: Reading, shown: Shown
) -> None:
    """Measure, write, and say what came of it. Raises UserError for a column that cannot be
    measured, and a file that cannot be written."""
    written.check(source)
    tagged = tag_data.measured(
        tagger.config(source, how, shown.limit), columns, tagger, written.root
    )
    rows = tag_data.write(tagged, source, how, shown.limit, written)
    figures, filled = tagged.figures(), tagged.columns()
    if shown.as_json:
        there = {"out": str(written.out), "store": str(written.root)}
        found = {"source": source, "rows": rows, "columns": filled, "measures": figures, **there}
        print(json.dumps(found, indent=1))
        return
    show_figures(figures)
    say(f"{rows:,} rows of {source} written to {written.out} with {', '.join(filled)}")
    say(f"what was measured lies in {written.root}; the same command measures what is new")


def check(
    source: str, columns: str, tagger: Tagger, wanted: Wanted, how: Reading, shown: Shown
) -> None:
    """Compare a tagger with the labels that a file has, and print how far both agree."""
    root = wanted.store or Path(f"{Path(source).name}.check")
    found = tag_check.compared(source, columns, tagger, root, how, wanted.sample)
    if shown.as_json:
        print(json.dumps({each.column: _plain(each) for each in found}, indent=1))
        return
    for each in found:
        _show_compared(each)
    say(f"what was measured lies in {root}; a larger --sample measures what is new")


def _plain(each: Compared) -> dict[str, Any]:
    theirs_and_ours = {label: list(shares) for label, shares in each.at_least.items()}
    held = {"labels": list(each.labels), "confusion": each.confusion, "failed": each.failed}
    return {**each.figures, **held, "share_at_least": theirs_and_ours}


def _show_compared(each: Compared) -> None:
    """One column: in a sentence, the shares that reach each label, and which label met which."""
    print()
    say(f"{sentence(each.column, each.figures, 'the file', 'the tagger')}")
    if each.failed:
        say(f"{each.failed:,} more could not be read from the tagger")
    if not each.figures["n"]:
        return
    shares = [
        (f">= {label}", f"{theirs:.1%}", f"{ours:.1%}", f"{ours - theirs:+.1%}")
        for label, (theirs, ours) in each.at_least.items()
    ]
    if shares:
        table(["share of rows", "file", "tagger", "shift"], shares)
    rows = [(label, *counts) for label, counts in zip(each.labels, each.confusion, strict=True)]
    table(["file \\ tagger", *each.labels], rows)


def show_figures(figures: dict[str, dict[str, Any]]) -> None:
    """A line a measure: rows measured, rows without, what failed and why."""
    lines = []
    for name, each in figures.items():
        failed = "; ".join(f"{n:,} x {reason}" for reason, n in each["failed"].items())
        lines.append((name, f"{each['measured']:,}", f"{each['without']:,}", failed))
    if lines:
        table(["measure", "measured", "cannot have it", "failed"], lines)
