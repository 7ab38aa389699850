"""Values that stand where a text should: told by the type of their column, and, where JSON holds
texts and other values in one column (polars writes 5, true and ["a"] as texts then), by a look at
the rows in question.

A row with such a value in a text that it is read for is a failed row; nothing of it is made text to
train on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

Untold = Mapping[str, Mapping[int, str]]
"""Column -> place of a row -> what its value is in place of a text."""

LIST = "list of texts"
"""What the content of a turn is that lists texts, not parts."""
NO_UTF8 = "bytes that are no UTF-8 text"
_SAID = (
    *("value", "content", "text", "thinking", "reasoning", "reasoning_content"),
    *("input", "output", "user", "assistant"),
)
"""Fields of a turn, or of a part of one, that hold texts."""
_NUMBER = r"^-?(?:[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|NaN|inf|Infinity)$|^(?:true|false|})$"
"""A text that may have been no text: a number, a truth, or what polars makes of {}."""


def is_text(kind: pl.DataType | None) -> bool:
    """Whether a column may hold texts; one that is null throughout may."""
    return kind in (pl.String, pl.Null) or isinstance(kind, (pl.Categorical, pl.Enum))


def odd(value: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """What a value of this type is in place of a text; null where it is a text or null."""
    if is_text(kind):
        return pl.lit(None, pl.String)
    return pl.when(value.is_not_null()).then(pl.lit(_word(kind)))


def _word(kind: pl.DataType) -> str:
    known = {pl.Boolean: "true or false", pl.Binary: "bytes", pl.Struct: "object"}
    if kind.is_numeric():
        return "number"
    return known.get(type(kind), "list" if kind.is_nested() else "date or time")


def as_texts(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The same rows with these columns as texts, whatever they are: their rows fail, and keep what
    they held."""
    for name in columns:
        kind = frame.schema.get(name)
        if kind is None or is_text(kind):
            continue
        plain = not kind.is_nested() and kind != pl.Duration
        text = frame[name].cast(pl.String, strict=False) if plain else None
        if text is None or text.null_count() > frame[name].null_count():
            text = pl.Series([_spelled(each) for each in frame[name].to_list()], dtype=pl.String)
        frame = frame.with_columns(text.alias(name))
    return frame


def _spelled(value: Any) -> str | None:
    if value is None:
        return None
    return json.dumps(value, ensure_ascii=False, default=str)


def without_bytes(
    frame: pl.DataFrame, places: pl.Series, names: frozenset[str]
) -> tuple[pl.DataFrame, dict[str, dict[int, str]]]:
    """Rows whose columns of bytes are texts, where they go by one of `names` (capitals aside) or
    are lists or objects; and which of them, by column and place, are no UTF-8 text: what of them is
    none is spelled out."""
    found: dict[str, dict[int, str]] = {}
    for name, kind in frame.schema.items():
        wanted = _as_strings(kind)
        if wanted == kind or not (kind.is_nested() or name.lower() in names):
            continue
        try:
            frame = frame.with_columns(pl.col(name).cast(wanted))
        except pl.exceptions.PolarsError:
            held = frame[name].to_list()
            bad = [number for number, each in zip(places, held, strict=True) if _is_odd(each)]
            found[name] = dict.fromkeys(bad, NO_UTF8)
            told = pl.Series(name, list(map(_decoded, held)), dtype=wanted)
            frame = frame.with_columns(told)
    return frame, found


def holds_bytes(kind: pl.DataType) -> bool:
    """Whether values of a type are, or hold, bytes."""
    return bool(_as_strings(kind) != kind)


def _as_strings(kind: Any) -> Any:
    """A type with texts in place of bytes."""
    if kind == pl.Binary:
        return pl.String()
    if isinstance(kind, pl.List):
        return pl.List(_as_strings(kind.inner))
    if isinstance(kind, pl.Struct):
        return pl.Struct({each.name: _as_strings(each.dtype) for each in kind.fields})
    return kind


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decoded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _is_odd(value: Any) -> bool:
    """Whether bytes in a value are no UTF-8 text."""
    if isinstance(value, (dict, list)):
        return any(map(_is_odd, value.values() if isinstance(value, dict) else value))
    try:
        return isinstance(value, bytes) and not isinstance(value.decode("utf-8"), str)
    except UnicodeDecodeError:
        return True


def untold(
    frame: pl.DataFrame, rows: Sequence[tuple[int, bytes]], names: frozenset[str]
) -> dict[str, dict[int, str]]:
    """Which of numbered rows of JSON hold something else where their frame has a text: in a column
    of texts that goes by one of `names` (capitals aside), or in a turn. A row is parsed again only
    where what the frame has may have been no text."""
    asked = {
        name: doubt
        for name, kind in frame.schema.items()
        if (kind.is_nested() or name.lower() in names)
        and (doubt := _doubt(pl.col(name), kind)) is not None
    }
    found: dict[str, dict[int, str]] = {}
    doubts = frame.select(doubt.alias(name) for name, doubt in asked.items())
    for name in asked:
        for at in doubts[name].fill_null(False).arg_true():
            number, line = rows[at]
            value = json.loads(line).get(name)
            kinds = _in_turns(value) if frame.schema[name].is_nested() else _plain(value)
            if (what := next(kinds, None)) is not None:
                found.setdefault(name, {})[number] = what
    return found


def _doubt(value: pl.Expr, kind: pl.DataType) -> pl.Expr | None:
    """Whether a text, or one within, may have been something else; None where there is no text."""
    if kind == pl.String:
        text = value.str
        begins = text.starts_with("[") | text.starts_with("{")
        ends = text.ends_with("]") | text.ends_with("}")
        return (begins & ends) | text.contains(_NUMBER)
    if isinstance(kind, pl.List):
        inner = _doubt(pl.element(), kind.inner)  # type: ignore[arg-type]
        return None if inner is None else value.list.eval(inner).list.any()
    if isinstance(kind, pl.Struct):
        below = [
            _doubt(value.struct.field(each.name), each.dtype)  # type: ignore[arg-type]
            for each in kind.fields
            if each.name in _SAID
        ]
        told = [each for each in below if each is not None]
        return pl.any_horizontal(told) if told else None
    return None


def _plain(value: Any) -> Iterator[str]:
    """What a value is that is neither text nor null."""
    if isinstance(value, bool):
        yield "true or false"
    elif isinstance(value, (int, float)):
        yield "number"
    elif isinstance(value, (list, dict)):
        yield "list" if isinstance(value, list) else "object"


def _in_turns(value: Any) -> Iterator[str]:
    """What stands in a conversation where a text should."""
    if isinstance(value, list):
        for each in value:
            yield from _in_turns(each)
    elif isinstance(value, dict):
        for name in _SAID:
            yield from no_content(value.get(name))
    else:
        yield from _plain(value)


def no_content(value: Any) -> Iterator[str]:
    """What the content of a turn is where it is no text, nor a list of parts."""
    if not isinstance(value, list):
        yield from _plain(value)
    elif not all(isinstance(part, dict) for part in value):
        yield LIST
    else:
        for part in value:
            for name in _SAID:
                yield from _plain(part.get(name))
