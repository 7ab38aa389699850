"""A tagged data set on disk as the frame that filters read: ours or published, in either naming;
Parquet, JSON Lines, or a hub id.

Nothing is computed by a model here: a column that is neither there nor follows from others is
refused by name. Of Parquet only the columns that the filters name are read. A test on a long text
is answered where the text lies and leaves one true or false a row. A null, a label that is no label
and a number that is none are that row's failed tag, counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from core.columns import FAILED, OK, STATUS
from core.errors import UserError
from synth.filters.rule import Rule
from synth.filters.where import Node
from synth.measures import SHIPPED, Field_, Measures
from synth.published import rows
from synth.published.cells.derived import MIN_SIMILAR_ID, derived, inputs
from synth.published.cells.failed import NO_NUMBER, NO_WHOLE, worded
from synth.published.cells.texts import holds_bytes, is_text
from synth.published.files import AS_IT_IS, files, first_line
from synth.published.forms import KNOWN, failed_value, is_ours, names_of
from synth.published.layouts import recognised
from synth.published.turns import WHAT, fields_of
from synth.tags import text_figures
from synth.tags.language_codes import code_of

_HELD_OUT = ("heldout", "reserved")
FINISHED = "response_finish_reason"
"""Read wherever it is there: choices may leave out answers that were cut off."""
_NO_NUMBER = "no number: "
"""Before the name of a column of numbers: what a file held there that is none."""
NO_RESPONSE, TWICE = "no response", "the id occurs twice"


@dataclass(frozen=True)
class Tagged:
    """`frame`: as `Pool.frame()`, in the order of the files, over answers in place of long texts;
    `rules`: the filters over that frame; `failed`: column -> reason -> cells; `out`: reason -> rows
    that nothing can be said of."""

    frame: pl.DataFrame
    rules: list[Rule]
    failed: dict[str, dict[str, int]]
    out: dict[str, int]


_FROM_TEXT = {
    "text": ("instruction", text_figures.instruction_columns),
    "response": ("response", text_figures.response_columns),
}
"""Measure -> (the text, what works its columns out)."""


@dataclass(frozen=True)
class _Asked:
    """What the rules read of a source: `columns` as they are, and `tests`: each condition on a long
    text by its words, which is answered in place of reading the text."""

    rules: Sequence[Rule]
    columns: frozenset[str]
    long: frozenset[str]
    tests: Mapping[str, Node]

    @property
    def measures(self) -> Measures:
        """What the rules' columns are columns of."""
        return self.rules[0].measures if self.rules else SHIPPED

    @cached_property
    def derived(self) -> Mapping[str, pl.Expr]:
        """How a column follows from others."""
        return derived(self.measures)

    @property
    def wanted(self) -> frozenset[str]:
        """Every column that is needed, for itself or for a test."""
        return self.columns.union(*(leaf.columns for leaf in self.tests.values()))


def read(source: str | Path, rules: Sequence[Rule]) -> Tagged:
    """The columns of a data set that these filters read.

    `source`: a file, a folder, or a hub id. Raises UserError for a source that cannot be read, and
    for a column that a filter needs and the source has not.
    """
    asked = _asked(rules)
    name = str(source)
    parts = [_collected(scan, name, asked) for scan in _scans(source, asked)]
    # A row without an id gets one from its content.
    if not parts or any(part["id"].fill_null("").eq("").any() for part in parts):
        batches = _batches(source, asked)
        parts = [_collected(batch, name, asked) for batch in batches]
    if not sum(map(len, parts)):
        raise UserError(f"{source} holds no rows.")
    frame, failed = _typed(pl.concat(parts, how="diagonal_relaxed"), asked)
    twice = pl.when(~pl.col("id").is_first_distinct()).then(pl.lit(TWICE))
    frame = frame.with_columns(out=twice.otherwise("out"))
    out = dict(frame["out"].drop_nulls().value_counts(sort=True).iter_rows())
    response = pl.when(pl.col("out").is_null()).then(pl.lit(OK)).otherwise(pl.lit(FAILED))
    status = {m: pl.lit(OK, STATUS) for m in asked.measures.table} | {
        "response": response.cast(STATUS)
    }
    frame = frame.with_columns(value.alias(f"status:{m}") for m, value in status.items())
    answered = [_over_answers(rule, asked.long) for rule in rules]
    return Tagged(frame.drop("out"), answered, failed, out)


def lacking(source: str | Path, rules: Sequence[Rule]) -> list[str]:
    """The measures of the columns that these filters read and a source neither holds nor has the
    texts for, cheapest first."""
    asked = _asked(rules)
    if _scans(source, asked):
        return []
    first = next(_batches(source, asked), None)
    schema = pl.Schema() if first is None else first.collect_schema()
    absent = [c for c in asked.wanted if not _inputs(c, schema, asked.derived)]
    return asked.measures.filling(absent)


def _asked(rules: Sequence[Rule]) -> _Asked:
    needed = {column for rule in rules for column in rule.columns}
    ranked = {column for rule in rules for column in rule.choose.ranks}
    long = rules[0].measures.long_columns(needed - ranked) if rules else frozenset()
    leaves = [leaf for rule in rules if rule.where for leaf in rule.where.root.leaves()]
    tests = {leaf.text: leaf for leaf in leaves if leaf.columns & long}
    return _Asked(rules, frozenset(needed - long), long, tests)


def _over_answers(rule: Rule, long: frozenset[str]) -> Rule:
    """The rule over a frame with answers in place of long texts."""
    if rule.where is None:
        return rule
    return replace(rule, where=replace(rule.where, root=rule.where.root.with_answers(long)))


def _scans(source: str | Path, asked: _Asked) -> list[pl.LazyFrame]:
    """Every file of a Parquet source, to be read by columns; none where it is something else, or
    has to be read row by row for its ids or texts."""
    path = Path(source).expanduser()
    held = files(path) if path.exists() else []
    if any(file.suffix != ".parquet" for file in held):
        return []
    try:
        scans = [pl.scan_parquet(file, glob=False) for file in held]
        schemas = [scan.collect_schema() for scan in scans]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{source} cannot be read as Parquet: {first_line(error)}") from error
    if not all(map(_holds_texts, schemas)):
        return []
    needed = ("id", *asked.wanted)
    found = [_inputs(c, schema, asked.derived) for schema in schemas for c in needed]
    if not all(found):
        return []
    # A text under another layout is not what its column's name says.
    texts = {"instruction", "response"} & set().union(*found)
    straight = not texts or all(map(_as_published, schemas, held))
    return scans if straight else []


def _holds_texts(schema: Mapping[str, pl.DataType]) -> bool:
    """Whether nothing but texts stands where the published sets have texts."""
    names = [n for text in ("instruction", "response") for n in names_of(text)]
    if any(holds_bytes(kind) for name, kind in schema.items() if name in KNOWN or kind.is_nested()):
        return False
    texts = all(is_text(schema[n]) for n in names if n in schema)
    contents = [f.get(n, pl.Null()) for f in map(fields_of, schema.values()) for n in WHAT]
    return texts and all(is_text(kind) or isinstance(kind, pl.List) for kind in contents)


def _as_published(schema: pl.Schema, file: Path) -> bool:
    """Whether a file's texts stand under their names; ours do."""
    return is_ours(schema) or recognised(schema, file.name, AS_IT_IS).published


def _batches(source: str | Path, asked: _Asked) -> Iterator[pl.LazyFrame]:
    """Rows in our names, whatever the file's form; with the columns that follow from texts
    alone."""
    known = asked.measures.columns
    words = [c for c in asked.wanted if known[c].field.source == "words"]
    figures = [c for c in words if c not in asked.derived]
    for batch in rows.read(source):
        whole = batch
        for measure, (text, work_out) in _FROM_TEXT.items():
            lacking = [c for c in figures if known[c].measure == measure and c not in batch.columns]
            if lacking and text in batch.columns:
                whole = whole.with_columns(work_out(batch.select("id", text)).select(lacking))
        yield whole.lazy()


def _named(column: str, there: Iterable[str]) -> list[str]:
    """The names that a column of ours goes by in a file with these names, the published ones
    first."""
    held = set(there)
    # In our form another name of a text, as Alpaca's `input`, is a column of the file it came from.
    known = (column,) if is_ours(held) else names_of(column)
    return [alias for alias in known if alias in held]


def _inputs(column: str, there: Iterable[str], derived: Mapping[str, pl.Expr]) -> list[str]:
    """Our columns that have to be read for a column: itself where the file has it, else what it
    follows from; nothing where it is not to be had."""
    held = set(there)
    if _named(column, held):
        return [column]
    found = inputs(column, derived)
    return found if all(_named(c, held) for c in found) else []


def _collected(scan: pl.LazyFrame, source: str, asked: _Asked) -> pl.DataFrame:
    """One file or batch: [id, the columns, the answers to the tests, out (why nothing can be said
    of a row), heldout, reserved]."""
    schema = scan.collect_schema()
    lacking = [c for c in sorted(asked.wanted) if not _named(c, schema)]
    for column in lacking:
        if not _inputs(column, schema, asked.derived):
            raise _absent(column, source, asked)
    spoken = next((c for c in ("response_length", "response") if _named(c, schema)), "")
    read = {"id", spoken, *(i for c in asked.wanted for i in _inputs(c, schema, asked.derived))}
    read -= {""}
    if FINISHED in schema:
        read.add(FINISHED)
    if "min_similar_id" in read and _named("repeat_count", schema):
        read.add("repeat_count")
    held = [(pl.col(f) if f in schema else pl.lit(False)).alias(f) for f in _HELD_OUT]
    fields = asked.measures.fields
    values = [_ours(c, schema, fields) for c in sorted(read)]
    if "failed_tags" in schema:  # a number that is none is null by now
        numbers = [c for c in sorted(asked.columns) if fields[c].kind == "number"]
        values += [failed_value(c).alias(f"{_NO_NUMBER}{c}") for c in numbers]
    ours = scan.select(*values, _out(spoken, schema), *held)
    if "repeat_count" in read and "min_similar_id" in read:
        ours = ours.with_columns(MIN_SIMILAR_ID)
    ours = ours.with_columns(asked.derived[c].alias(c) for c in lacking)
    answers = [leaf.expr.alias(words) for words, leaf in asked.tests.items()]
    told = {*ours.collect_schema()}
    short = sorted((asked.columns | {FINISHED}) & told)
    short += sorted(name for name in told if name.startswith(_NO_NUMBER))
    try:
        return ours.select("id", *short, *answers, "out", *_HELD_OUT).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{source} cannot be read: {first_line(error)}") from error


def _ours(column: str, schema: pl.Schema, fields: Mapping[str, Field_]) -> pl.Expr:
    """A column under our name: the first of its names that holds a value. Labels as text, odd ones
    too."""
    names, numbers = _named(column, schema), column in fields and fields[column].kind == "number"
    value = pl.coalesce(worded(n, schema[n]) if numbers else pl.col(n) for n in names)
    if column in fields and fields[column].labels:
        value = value.cast(pl.String)
        if "failed_tags" in schema:
            value = pl.coalesce(value, failed_value(column))
    if column == "language" and value.meta.root_names():
        value = code_of(value.cast(pl.String))
    return (value.cast(pl.String) if column == "id" else value).alias(column)


def _out(spoken: str, schema: pl.Schema) -> pl.Expr:
    """Why nothing can be said of a row: it failed when it was read, or has no response. `spoken`:
    the column that tells whether there is one, if any."""
    silent = pl.lit(False)
    if spoken:
        held = pl.col(_named(spoken, schema)[0])
        text = held.fill_null("").str.strip_chars() == ""
        silent = held.fill_null(0) == 0 if spoken == "response_length" else text
    if "status:response" in schema:
        silent = silent | (pl.col("status:response") == OK).not_().fill_null(True)
    mute = pl.when(silent).then(pl.lit(NO_RESPONSE))
    if "failed_tags" not in schema:
        return mute.alias("out")
    why = pl.col("reason")
    twice = pl.when(why.str.contains("occurs twice")).then(pl.lit(TWICE))
    reason = twice.otherwise(why.str.replace(r" \([^()]*\)$", ""))
    return pl.when(pl.col("status") == FAILED).then(reason).otherwise(mute).alias("out")


def _typed(frame: pl.DataFrame, asked: _Asked) -> tuple[pl.DataFrame, dict[str, dict[str, int]]]:
    """The columns in their declared types, and how many cells of each are no value, by reason."""
    failed: dict[str, dict[str, int]] = {}
    for column in sorted(asked.columns):
        raw = frame[column]
        values, odd, word = _values(raw, column, asked.measures.fields[column])
        if f"{_NO_NUMBER}{column}" in frame.columns:
            odd = odd.append(frame[f"{_NO_NUMBER}{column}"].drop_nulls())
        frame = frame.with_columns(values.alias(column))
        reasons: Counter[str] = Counter()
        for value, n in odd.value_counts().iter_rows():
            reasons[word.format(str(value)[:40])] += n
        if nulls := values.null_count() - len(odd):
            reasons["not measured" if column == "language" else "null"] += nulls
        if reasons:
            failed[column] = dict(reasons.most_common())
    return frame.drop(pl.selectors.starts_with(_NO_NUMBER)), failed


def _values(raw: pl.Series, column: str, declared: Field_) -> tuple[pl.Series, pl.Series, str]:
    """A column's values in the declared type, those that are none, and how to say so."""
    if declared.labels:
        values = raw.cast(pl.Enum(declared.labels), strict=False)
        return values, raw.filter(values.is_null() & raw.is_not_null()), "unknown label '{}'"
    if declared.kind == "number":
        values = raw.cast(pl.Float64, strict=False)
        values = values.zip_with(values.is_finite().fill_null(False), values.clear(len(values)))
        if declared.whole:
            values = values.zip_with(values.round() == values, values.clear(len(values)))
        odd = raw.filter(values.is_null() & raw.is_not_null())
        return values, odd.cast(pl.String, strict=False), NO_WHOLE if declared.whole else NO_NUMBER
    if column == "exact_duplicate" and raw.dtype != pl.Boolean:
        raw = ~raw.is_first_distinct()
    if declared.kind == "bool" and raw.dtype not in (pl.Boolean, pl.Null):
        raise UserError(
            f"`{column}` should hold true or false but holds {raw.dtype}; "
            "convert the column or leave it out of the filter."
        )
    return raw, raw.clear(), ""


def _absent(column: str, source: str, asked: _Asked) -> UserError:
    who = ", ".join(rule.name for rule in asked.rules if column in rule.columns)
    names = [n for n in names_of(column) if n != column]
    other = f" (nor {', '.join(names)})" if names else ""
    hint = ""
    if follows := inputs(column, asked.derived):
        hint = f" It would follow from {' and '.join(follows)}, which are not there either."
    return UserError(f"{source} has no column `{column}`{other}, which {who} needs.{hint}")
