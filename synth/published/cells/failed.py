"""Which cells and rows of a file that nobody here wrote failed, and why.

A cell that is no label, no finite number or nothing of its column's kind is that row's failed tag:
null in its column, and kept as text in `failed_tags`. A row whose texts cannot be trained on is a
failed row. Neither is dropped, and nothing of it is altered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import polars as pl

from core.columns import FAILED, MESSAGES, OK
from synth.measures import DECLARED
from synth.published.cells.texts import odd as odd_text
from synth.published.files import Part
from synth.published.forms import PUBLISHED, TAG_LABELS, TROUBLE, of_turn, or_null
from synth.published.layouts import Layout
from synth.published.turns import KNOWN_ROLES, fields_of, is_talk, is_turn

GOOD = "_good"
"""Whether a rated answer is a good one."""
ODD = "_odd_"
"""Before the name of a column that holds what was not of that column's kind, until it is told."""
NO_NUMBER = "no number: '{}'"
"""Why a cell of a column of numbers failed: also NaN and the infinities."""
NO_WHOLE = "no whole number: '{}'"
"""Why a cell of a column of counts failed."""
NESTED = "a list or object"
"""How a cell of a column of plain values is told that holds other values."""
HALF = "half a character"
"""A surrogate without the other of its pair, which no UTF-8 text holds."""
NUL = "a NUL character"
_SPELLED = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
"""How `json_rows.spelled` writes half a character."""
_SPOKEN = ("id", "instruction", "response")


def as_number(name: str, value: pl.Expr, text: pl.Expr) -> list[pl.Expr]:
    """A column of numbers, and the texts of what is none in it. (JSON of Python's has NaN and
    Infinity where a score could not be had.)"""
    good = value.is_finite().fill_null(False)
    odd = pl.when(~good).then(text).alias(f"{ODD}{name}")
    return [pl.when(good).then(value).alias(name), odd]


def as_count(value: pl.Expr) -> pl.Expr:
    """Counts, null where a value is none: 2.5 is not 2."""
    real = value.cast(pl.Float64, strict=False)
    number = pl.coalesce(value.cast(pl.Int64, strict=False), real.cast(pl.Int64, strict=False))
    return pl.when(number.cast(pl.Float64) == real).then(number)


def why_no_number(column: str) -> str:
    """Why a cell of a column of numbers failed, its value to be filled in."""
    return NO_WHOLE if DECLARED[column].whole else NO_NUMBER


def worded(column: str, kind: pl.DataType) -> pl.Expr:
    """A column that is to hold numbers, where whatever is neither number nor text stands in words:
    true is not 1.0, a date no count of days."""
    if kind.is_nested():
        return pl.when(pl.col(column).is_not_null()).then(pl.lit(NESTED))
    if kind.is_numeric() or kind in (pl.String, pl.Null):
        return pl.col(column)
    if kind == pl.Duration:  # which polars makes no text of
        return pl.when(pl.col(column).is_not_null()).then(pl.lit("a duration"))
    return pl.col(column).cast(pl.String, strict=False)


def finite(ours: pl.DataFrame) -> pl.DataFrame:
    """Rows of our form; a score that is no finite number is that row's failed tag."""
    scores = [n for n in PUBLISHED if n in ours.columns and DECLARED[n].kind == "number"]
    kinds = {n: ours.schema[n] for n in scores if ours.schema[n] != pl.Null}
    odd = [
        n
        for n, kind in kinds.items()
        if not kind.is_numeric() or (kind.is_float() and not ours[n].is_finite().all())
    ]
    if not odd:
        return ours
    words = {n: worded(n, kinds[n]) for n in odd}
    pairs = [
        as_number(n, word.cast(pl.Float64, strict=False), word.cast(pl.String))
        for n, word in words.items()
    ]
    marked = ours.with_columns(each for pair in pairs for each in pair)
    return _added(marked, [_odd(f"{ODD}{n}") for n in odd]).drop(f"{ODD}{n}" for n in odd)


def labels(ours: pl.DataFrame) -> pl.DataFrame:
    """`failed_tags` of each row; what failed is null in its column."""
    trouble: list[pl.Expr] = []
    cleaned = []
    for name, known in TAG_LABELS.items():
        if name in ours.columns:
            bad = ~pl.col(name).is_in(known)
            trouble.append(pl.when(bad).then(_trouble(name, name, "unknown label '{}'")))
            cleaned.append(pl.when(~bad).then(name).alias(name))
    odd = [c for c in ours.columns if c.startswith(ODD)]
    trouble += [_odd(column) for column in odd]
    failed = pl.concat_list(trouble).list.drop_nulls() if trouble else pl.lit([], TROUBLE)
    return ours.with_columns(*cleaned, failed_tags=failed.cast(TROUBLE)).drop(odd)


def _odd(column: str) -> pl.Expr:
    """The failed tag of what was not of its column's kind; null where nothing was."""
    name = column.removeprefix(ODD)
    counted = name in DECLARED and DECLARED[name].kind == "number"
    reason = why_no_number(name) if counted else "'{}' is not of the column's kind"
    return pl.when(pl.col(column).is_not_null()).then(_trouble(name, column, reason))


def _trouble(name: str, value: str, reason: str) -> pl.Expr:
    """The failed tag `name` whose value stands in a column."""
    why = pl.format(reason, pl.col(value).str.slice(0, 40))
    return pl.struct(column=pl.lit(name), reason=why, value=pl.col(value))


def _added(ours: pl.DataFrame, tags: Sequence[pl.Expr]) -> pl.DataFrame:
    """Rows with more failed tags."""
    more = pl.concat_list(tags).list.drop_nulls().cast(TROUBLE)
    before = pl.col("failed_tags").cast(TROUBLE).fill_null([])
    return ours.with_columns(failed_tags=before.list.concat(more))


OF_A_PART = "a part of kind '{}' in a turn"
"""Why a row failed that has a turn with something else than texts, thoughts and tool calls."""
_OWN_TEXTS = ("instruction", "response", "thinking")


def no_texts(part: Part, layout: Layout) -> pl.Series:
    """[_untold] Why a row's texts are none, or its conversation holds what is none, where the rows
    are taken so; null for the others."""
    named = {now: before for before, now in layout.renames.items()}
    loose = [named.get(n, n) for n in layout.loose]
    return _untold(part, [named.get(n, n) for n in layout.texts], loose)


def own_no_texts(part: Part) -> pl.Series:
    """The same of a file of our form."""
    found = _untold(part, (*_OWN_TEXTS, "messages"), {"messages"})
    kind = part.frame.schema.get("messages")
    if is_talk(kind):
        content = odd_text(of_turn("content"), fields_of(kind).get("content", pl.Null()))
        first = pl.col("messages").list.eval(content).list.drop_nulls().list.first()
        told = part.frame.select(pl.format(OF_A_PART, first)).to_series()
        found = found.zip_with(found.is_not_null(), told)
    return found


def of_ours(ours: pl.DataFrame, why: pl.Series, part: Part) -> pl.DataFrame:
    """Rows of our form, where those fail that there is a reason for."""
    told = ours.with_columns(why.alias("_untold"))
    reason = pl.format("{} ({})", "_untold", _place(part))
    return _failing(told, reason).drop("_untold")


def _untold(part: Part, columns: Sequence[str], loose: Collection[str]) -> pl.Series:
    """Why rows fail that hold something else in these columns of texts. `loose`: those that may
    hold lists of texts."""
    why: list[pl.Expr] = []
    for name in columns:
        kind = part.frame.schema.get(name, pl.Null())
        turns = is_talk(kind) or is_turn(kind)
        # A list of bare texts is a conversation, where it is taken for one.
        if not turns and not (name in loose and kind.is_nested()):
            told = odd_text(pl.col(name), kind) if name in part.frame.columns else pl.lit(None)
            why.append(pl.format("no text in `{}`: {}", pl.lit(name), told))
        if held := part.untold.get(name):
            kinds = pl.Series([held.get(place) for place in part.places], dtype=pl.String)
            at = OF_A_PART if kind.is_nested() else f"no text in `{name}`: {{}}"
            why.append(pl.format(at, pl.lit(kinds)))
    if not why:
        return pl.Series("_untold", [None] * len(part.frame), dtype=pl.String)
    # As columns of the frame: a literal alone would be one row.
    found = part.frame.with_columns(_untold=pl.coalesce(why).cast(pl.String))
    return found["_untold"]


def with_status(ours: pl.DataFrame, part: Part, *, prompts: bool) -> pl.DataFrame:
    """Which rows are failed rows, and why; every id is made the row's own. `prompts`: a row needs
    no response."""
    again = pl.col("_again")
    ours = ours.with_columns(
        or_null(name, ours.columns, kind)
        for name, kind in ((GOOD, pl.Boolean), ("_odd", pl.String), ("_untold", pl.String))
    )
    place = _place(part)
    at = pl.format(" ({})", place)
    role, text = of_turn("role"), of_turn("content")
    turns = pl.col("messages").list
    strange = turns.eval(role.filter(~role.is_in(KNOWN_ROLES))).list.first()
    silent = turns.eval(_blank(text) & (role != "tool")).list.any().fill_null(False)
    odd = pl.format(OF_A_PART + "{}", "_odd", at)
    reasons = (
        pl.when(again).then(pl.format("the id {} occurs twice{}", "id", at)),
        pl.when(pl.col(GOOD).not_()).then(pl.format("a rejected answer{}", at)),
        pl.when(pl.col("_untold").is_not_null()).then(pl.format("{}{}", "_untold", at)),
        pl.when(pl.col("_odd").is_not_null()).then(odd),
        pl.when(_blank(pl.col("instruction"))).then(pl.format("no instruction{}", at)),
        pl.when(_blank(pl.col("response")) & ~pl.lit(prompts)).then(pl.format("no response{}", at)),
        pl.when(strange.is_not_null()).then(pl.format("a turn of role '{}'{}", strange, at)),
        pl.when(silent).then(pl.format("a turn without text{}", at)),
    )
    reason = pl.coalesce(reasons).cast(pl.String)
    ours = ours.with_columns(
        id=pl.when(again).then(pl.format("{}#{}", "id", place)).otherwise("id"),
        reason=reason,
        status=pl.when(reason.is_null()).then(pl.lit(OK)).otherwise(pl.lit(FAILED)),
    )
    return damaged(ours.drop("_again", "_odd", "_untold", GOOD), part)


def _place(part: Part) -> pl.Expr:
    return pl.format("{} {} {}", pl.lit(part.name), pl.lit(part.unit), pl.lit(part.places))


def _blank(text: pl.Expr) -> pl.Expr:
    return text.fill_null("").str.strip_chars() == ""


def damaged(ours: pl.DataFrame, part: Part) -> pl.DataFrame:
    """Rows of our form; one that names a key twice is a failed row, and one whose id, instruction,
    response or turns hold NUL or half a character. Half a character in another text is that row's
    failed tag."""
    if part.repeated:
        ours = _failing(ours, pl.lit(part.twice))
    nul = ours.select(_spoken(ours, _has_nul)).to_series()
    half = part.places.is_in(sorted(part.halves))
    if not (nul.any() or half.any()):
        return ours
    known = (*_SPOKEN, *TAG_LABELS, "source_columns", "status", "reason")
    others = [n for n, kind in ours.schema.items() if kind == pl.String and n not in known]
    marked = ours.with_columns(_nul=nul, _half=half)
    if half.any():
        held = [pl.col("_half") & _is_spelled(pl.col(n)).fill_null(False) for n in others]
        tags = [
            pl.when(here).then(_trouble(n, n, f"{HALF}: '{{}}'"))
            for n, here in zip(others, held, strict=True)
        ]
        marked = _added(marked, tags) if tags else marked
        # What is in no text of the row is in one within a list or object.
        told = pl.col("failed_tags").list.eval(_is_spelled(pl.element().struct.field("value")))
        spoken = _spoken(ours, _is_spelled)
        marked = marked.with_columns(_half=pl.col("_half") & (spoken | ~told.list.any()))
    return _refused(_refused(marked, "_half", HALF, part), "_nul", NUL, part)


def _refused(ours: pl.DataFrame, column: str, why: str, part: Part) -> pl.DataFrame:
    """Rows without a column that says which of them fail; those that had not failed fail now."""
    reason = pl.format("{} in a text ({})", pl.lit(why), _place(part))
    return _failing(ours, pl.when(pl.col(column)).then(reason)).drop(column)


def _failing(ours: pl.DataFrame, reason: pl.Expr) -> pl.DataFrame:
    """Rows that fail now where there is a reason, and had not failed before."""
    now = reason.is_not_null() & (pl.col("status").cast(pl.String) == OK)
    return ours.with_columns(
        reason=pl.when(now).then(reason).otherwise("reason"),
        status=pl.when(now).then(pl.lit(FAILED)).otherwise(pl.col("status").cast(pl.String)),
    )


def _spoken(ours: pl.DataFrame, holds: Callable[[pl.Expr], pl.Expr]) -> pl.Expr:
    """Whether a row's id, instruction, response or a turn is a text of some kind."""
    texts = [holds(pl.col(n)) for n in _SPOKEN if ours.schema.get(n) == pl.String]
    if ours.schema.get("messages") == MESSAGES:
        turns = pl.col("messages").list.eval(holds(of_turn("content")) | holds(of_turn("role")))
        texts.append(turns.list.any())
    return pl.any_horizontal([pl.lit(False), *(text.fill_null(False) for text in texts)])


def _has_nul(text: pl.Expr) -> pl.Expr:
    return text.str.contains("\0", literal=True)


def _is_spelled(text: pl.Expr) -> pl.Expr:
    return text.str.contains(_SPELLED)
