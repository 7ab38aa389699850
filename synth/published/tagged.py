"""A tagged data set on disk as the frame that filters read: ours or published, in either naming;
Parquet, JSON Lines, or a hub id.

Nothing is computed by a model here: a column that is neither there nor follows from others is
refused by name. Of Parquet only the columns that the filters name are read. A test on a long text
is answered where the text lies and leaves one true or false a row. A null, a label that is no label
and a number that is none are that row's failed tag, counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from core.columns import FAILED, OK
from core.errors import UserError
from synth.filters.rule import FIELDS, Filter
from synth.filters.where import Node
from synth.measures import COLUMNS, DIFFICULTY, MEASURES, QUALITY, long_columns
from synth.published import files as sources
from synth.published import rows
from synth.published.forms import NAMES
from synth.tags import text_figures

STATUS = pl.Enum([OK, FAILED])
NO_RESPONSE, TWICE = "no response", "the id occurs twice"


@dataclass(frozen=True)
class Tagged:
    """`frame`: as `Pool.frame()`, in the order of the files, over answers in place of long texts;
    `rules`: the filters over that frame; `failed`: column -> reason -> cells; `out`: reason -> rows
    that nothing can be said of."""

    frame: pl.DataFrame
    rules: list[Filter]
    failed: dict[str, dict[str, int]]
    out: dict[str, int]


def _place(column: str, labels: Sequence[str]) -> pl.Expr:
    return pl.col(column).cast(pl.Enum(labels), strict=False).to_physical().cast(pl.Float64) + 1


_DERIVED: dict[str, tuple[tuple[str, ...], pl.Expr]] = {
    "instruction_length": (("instruction",), pl.col("instruction").str.len_chars()),
    "response_length": (("response",), pl.col("response").str.len_chars()),
    "near_duplicate": (("min_similar_id",), pl.col("min_similar_id") != pl.col("id")),
    "reward_difference": (
        ("instruct_reward", "base_reward"),
        pl.col("instruct_reward") - pl.col("base_reward"),
    ),
    "input_quality_rank": (("input_quality",), _place("input_quality", QUALITY)),
    "difficulty_rank": (("difficulty",), _place("difficulty", DIFFICULTY)),
    "pair_score_rank": (("pair_score",), pl.col("pair_score")),
    "pair_score": (("pair_score_rank",), pl.col("pair_score_rank")),
    "temperature": (("gen_input_config",), pl.col("gen_input_config").struct.field("temperature")),
    "top_p": (("gen_input_config",), pl.col("gen_input_config").struct.field("top_p")),
    # A pair of hashes in place of the text; told apart once every row is read.
    "exact_duplicate": (
        ("instruction",),
        pl.struct(
            pl.col("instruction").hash(0).alias("a"), pl.col("instruction").hash(1).alias("b")
        ),
    ),
}
"""Column -> (what it follows from, how), where the file has no such column."""

_GIVEN = {
    "instruction",
    "raw_instruction",
    "instruction_tokens",
    "instruction_finish_reason",
    "temperature",
    "top_p",
    "system_prompt",
    "response",
    "thinking",
    "response_tokens",
    "response_finish_reason",
}
_FROM_TEXT = {
    c: m
    for m in ("text", "response")
    for c in MEASURES[m].columns
    if c not in _GIVEN and c not in _DERIVED
}
"""Columns that synth/tags/text_figures.py computes: of the instruction (measure `text`) or the
response."""


def read(source: str | Path, rules: Sequence[Filter]) -> Tagged:
    """The columns of a data set that these filters read.

    `source`: a file, a folder, or a hub id. Raises UserError for a source that cannot be read, and
    for a column that a filter needs and the source has not.
    """
    needed = {column for rule in rules for column in rule.columns}
    long = long_columns(needed)
    tests = {
        leaf.text: leaf
        for rule in rules
        if rule.where
        for leaf in rule.where.root.leaves()
        if leaf.columns & long
    }
    wanted = (needed - long) | {column for leaf in tests.values() for column in leaf.columns}
    parts = [
        _collected(scan, str(source), wanted, list(tests.values()), rules)
        for scan in _scans(source, wanted) or []
    ]
    if not parts or any(
        (part["id"].fill_null("") == "").any() for part in parts
    ):  # a row without an id gets one from its content
        parts = [
            _collected(scan, str(source), wanted, list(tests.values()), rules)
            for scan in _batches(source, wanted)
        ]
    if not sum(map(len, parts)):
        raise UserError(f"{source} holds no rows.")
    frame, failed = _typed(pl.concat(parts, how="vertical_relaxed"), sorted(needed - long))
    frame = frame.with_columns(
        pl.when(~pl.col("id").is_first_distinct()).then(pl.lit(TWICE)).otherwise("out").alias("out")
    )
    out = {reason: n for reason, n in frame["out"].drop_nulls().value_counts(sort=True).iter_rows()}
    response = (
        pl.when(pl.col("out").is_null())
        .then(pl.lit(OK))
        .otherwise(pl.lit(FAILED))
        .cast(STATUS)
        .alias("status:response")
    )
    frame = (
        frame.with_columns([pl.lit(OK, STATUS).alias(f"status:{m}") for m in MEASURES])
        .with_columns(response)
        .drop("out")
    )
    answered = [
        replace(r, where=replace(r.where, root=r.where.root.with_answers(long))) if r.where else r
        for r in rules
    ]
    return Tagged(frame, answered, failed, out)


def _scans(source: str | Path, wanted: Iterable[str]) -> list[pl.LazyFrame] | None:
    """Every file of a Parquet source, to be read by columns; None where it is something else, or
    has to be read row by row for its ids or texts."""
    path = Path(source).expanduser()
    if not path.exists():
        return None
    files = sources.files(path)
    if any(file.suffix != ".parquet" for file in files):
        return None
    try:
        scans = [pl.scan_parquet(file) for file in files]
        held = [set(scan.collect_schema()) for scan in scans]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{source} cannot be read as Parquet: {str(error).splitlines()[0]}"
        ) from error
    simple = all(_named("id", names) and all(_inputs(c, names) for c in wanted) for names in held)
    return scans if simple else None


def _batches(source: str | Path, wanted: set[str]) -> Iterator[pl.LazyFrame]:
    """Rows in our names, whatever the file's form; with the columns that follow from texts
    alone."""
    by_text = {
        measure: [c for c in wanted if _FROM_TEXT.get(c) == measure]
        for measure in ("text", "response")
    }
    for batch in rows.read(source):
        made = batch
        for measure, columns in by_text.items():
            fresh = [c for c in columns if c not in batch.columns]
            compute, of = (
                (text_figures.instruction_columns, "instruction")
                if measure == "text"
                else (text_figures.response_columns, "response")
            )
            if fresh and of in batch.columns:
                made = made.with_columns(compute(batch.select("id", of)).select(fresh))
        yield made.lazy()


def _named(column: str, names: Iterable[str]) -> list[str]:
    """The names that a column of ours goes by in a file with these names, the published ones
    first."""
    held = set(names)
    return [alias for alias in _names(column) if alias in held]


def _names(column: str) -> list[str]:
    return list(dict.fromkeys([*NAMES.get(column, (None, ()))[1], column]))


def _inputs(column: str, names: Iterable[str]) -> tuple[str, ...]:
    """Our columns that have to be read for a column: itself where the file has it, else what it
    follows from; nothing where it is not to be had."""
    if _named(column, names):
        return (column,)
    found = _DERIVED.get(column, ((), pl.lit(None)))[0]
    return found if all(_named(c, names) for c in found) else ()


def _collected(
    scan: pl.LazyFrame,
    source: str,
    wanted: Iterable[str],
    tests: Sequence[Node],
    rules: Sequence[Filter],
) -> pl.DataFrame:
    """One file or batch: [id, the wanted columns (long texts as answers to `tests`), out (why
    nothing can be said of a row), heldout, reserved]."""
    schema = scan.collect_schema()
    for column in sorted(wanted):
        if not _inputs(column, schema):
            raise _absent(column, source, rules)
    spoken = next((c for c in ("response_length", "response") if _named(c, schema)), None)
    read = {
        "id",
        *(c for column in wanted for c in _inputs(column, schema)),
        *([spoken] if spoken else []),
    }
    read |= (
        {"repeat_count"} if "min_similar_id" in read and _named("repeat_count", schema) else set()
    )
    flags = [
        (pl.col(f) if f in schema else pl.lit(False)).alias(f) for f in ("heldout", "reserved")
    ]
    ours = scan.select(
        *(_ours(column, schema) for column in sorted(read)), _out(spoken, schema), *flags
    )
    if "repeat_count" in read:  # ours is always filled; published sets write null for no repeat
        lone = pl.col("min_similar_id").is_null() & (pl.col("repeat_count") == 0)
        ours = ours.with_columns(
            pl.when(lone).then("id").otherwise("min_similar_id").alias("min_similar_id")
        )
    ours = ours.with_columns(_DERIVED[c][1].alias(c) for c in wanted if not _named(c, schema))
    short = sorted(c for c in wanted if c not in COLUMNS or not COLUMNS[c][1].long)
    try:
        return ours.select(
            "id",
            *short,
            *[leaf.expr.alias(leaf.text) for leaf in tests],
            "out",
            "heldout",
            "reserved",
        ).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{source} cannot be read: {str(error).splitlines()[0]}") from error


def _ours(column: str, schema: pl.Schema) -> pl.Expr:
    """A column under our name: the first of its names that holds a value. Labels as text, odd ones
    too."""
    held = _named(column, schema)
    value = pl.coalesce(held) if len(held) > 1 else pl.col(held[0])
    if column in FIELDS and FIELDS[column].labels:
        value = value.cast(pl.String)
        if "failed_tags" in schema:
            item = (
                pl.element()
                .filter(pl.element().struct.field("column") == column)
                .struct.field("value")
            )
            value = pl.coalesce(value, pl.col("failed_tags").list.eval(item).list.first())
    return (value.cast(pl.String) if column == "id" else value).alias(column)


def _out(spoken: str | None, schema: pl.Schema) -> pl.Expr:
    """Why nothing can be said of a row: it failed when it was read, or has no response."""
    silent = pl.lit(False)
    if spoken is not None:
        held = pl.col(_named(spoken, schema)[0])
        silent = (
            held.fill_null(0) == 0
            if spoken == "response_length"
            else held.fill_null("").str.strip_chars() == ""
        )
    if "status:response" in schema:
        silent = silent | (pl.col("status:response") == OK).not_().fill_null(True)
    if "failed_tags" not in schema:
        return pl.when(silent).then(pl.lit(NO_RESPONSE)).alias("out")
    reason = (
        pl.when(pl.col("reason").str.contains("occurs twice"))
        .then(pl.lit(TWICE))
        .otherwise(pl.col("reason").str.replace(r" \([^()]*\)$", ""))
    )
    return (
        pl.when(pl.col("status") == FAILED)
        .then(reason)
        .when(silent)
        .then(pl.lit(NO_RESPONSE))
        .alias("out")
    )


def _typed(
    frame: pl.DataFrame, columns: Sequence[str]
) -> tuple[pl.DataFrame, dict[str, dict[str, int]]]:
    """The columns in their declared types, and how many cells of each are no value, by reason."""
    failed: dict[str, Counter[str]] = {}
    for column in columns:
        raw, declared = frame[column], FIELDS[column]
        if declared.labels:
            made = raw.cast(pl.Enum(declared.labels), strict=False)
            odd, word = raw.filter(made.is_null() & raw.is_not_null()), "unknown label '{}'"
        elif declared.kind == "number":
            made = raw.cast(pl.Float64, strict=False)
            odd, word = (
                raw.filter((made.is_null() & raw.is_not_null()) | made.is_nan().fill_null(False)),
                "no number: '{}'",
            )
            made = made.fill_nan(None)
        elif column == "exact_duplicate" and raw.dtype != pl.Boolean:
            made, odd, word = ~raw.is_first_distinct(), raw.clear(), ""
        else:
            made, odd, word = raw, raw.clear(), ""
        if declared.kind == "bool" and made.dtype not in (pl.Boolean, pl.Null):
            raise UserError(
                f"`{column}` should hold true or false but holds {made.dtype}; convert the column or leave it out of the filter."
            )
        frame = frame.with_columns(made.alias(column))
        reasons = Counter(
            {word.format(str(value)[:40]): n for value, n in odd.value_counts().iter_rows()}
        )
        if raw.null_count():
            reasons["null"] += raw.null_count()
        if reasons:
            failed[column] = reasons
    return frame, {column: dict(reasons.most_common()) for column, reasons in failed.items()}


def _absent(column: str, source: str, rules: Sequence[Filter]) -> UserError:
    who = ", ".join(rule.name for rule in rules if column in rule.columns)
    names = [n for n in _names(column) if n != column]
    other = f" (nor {', '.join(names)})" if names else ""
    follows = _DERIVED.get(column, ((), None))[0]
    hint = (
        f" It would follow from {' and '.join(follows)}, which are not there either."
        if follows
        else ""
    )
    return UserError(f"{source} has no column `{column}`{other}, which {who} needs.{hint}")
