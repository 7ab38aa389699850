"""Values of several kinds in one column of JSON: what can be made alike without altering it, and
how to say where the others are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from synth.published.cells.texts import no_content

CONTENTS = ("content", "value")
"""The fields of a turn that hold what is said."""


def levelled(value: Any) -> Any:
    """The same value with every turn's content as a list of parts; what is neither text nor parts
    is a part of the kind that it is."""
    if isinstance(value, list):
        return [levelled(each) for each in value]
    if not isinstance(value, dict):
        return value
    told = {name: levelled(each) for name, each in value.items()}
    for name in CONTENTS:
        if name not in told or not {"role", "from"} & {*told}:
            continue
        if isinstance(told[name], str):
            told[name] = [{"type": "text", "text": told[name]}]
        elif (what := next(no_content(told[name]), None)) is not None:
            told[name] = [{"type": what, "text": None}]
    return told


def with_truths_told(
    rows: Sequence[dict[str, Any]], schema: pl.Schema | None
) -> Sequence[dict[str, Any]]:
    """The same rows, where a column that holds truths and numbers, or a whole number beyond what
    polars holds, or is text by the `schema`, has all of them in words: polars makes 1.0 and 0.0 of
    true and false.

    Raises TypeError where a list or an object holds both under one name.
    """
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            for place, kind in _leaves(value, name):
                kinds.setdefault(place, set()).add(kind)
    mixed = {place for place, found in kinds.items() if bool in found and len(found) > 1}
    mixed |= {name for row in rows for name, value in row.items() if _is_beyond(value)}
    if deeper := sorted(mixed - {*itertools.chain.from_iterable(rows)}):
        raise TypeError(f"`{deeper[0]}` is true or false in one row and a number in another")
    mixed |= {name for name, kind in (schema or {}).items() if kind == pl.String}
    if not mixed & {*kinds}:
        return rows
    return [_with_told(row, mixed) for row in rows]


def _leaves(value: Any, place: str) -> Iterator[tuple[str, type]]:
    """The kind of every truth and number in a value, with the names that lead to it."""
    if isinstance(value, (bool, int, float)):
        yield place, type(value)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, f"{place}[]")
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(each, f"{place}.{name}")


def _is_beyond(value: Any) -> bool:
    return type(value) is int and abs(value) >= 2**127


def as_held(kind: pl.DataType) -> pl.DataType:
    """A type of a column of JSON as it is read: whole numbers of more than 64 bits, which Arrow
    holds none of, are texts."""
    if kind in (pl.Int128, pl.UInt128):
        return pl.String()
    if isinstance(kind, pl.List):
        return pl.List(as_held(kind.inner))  # type: ignore[arg-type]
    if isinstance(kind, pl.Struct):
        return pl.Struct({each.name: as_held(each.dtype) for each in kind.fields})  # type: ignore[arg-type]
    return kind


def _with_told(row: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """A row whose truths and numbers under these names are in words."""
    plain = (bool, int, float)
    told = {n: json.dumps(v) for n, v in row.items() if n in names and isinstance(v, plain)}
    return {**row, **told}


def truths_apart(*frames: pl.DataFrame) -> list[pl.DataFrame]:
    """The same empty frames, where a column that is true or false in one and a number in another
    is text. Raises TypeError where that is so within lists or objects."""
    kinds: dict[str, list[pl.DataType]] = {}
    for frame in frames:
        for name, kind in frame.schema.items():
            kinds.setdefault(name, []).append(kind)
    mixed = []
    for name, found in kinds.items():
        places = {place for kind in found for place in _truths(kind, name, pl.Boolean)}
        places &= {place for kind in found for place in _truths(kind, name, None)}
        if name in places:
            mixed.append(name)
        elif places:
            where = min(places)
            raise TypeError(f"`{where}` is true or false in one row and a number in another")
    as_text = pl.selectors.by_name(*mixed, require_all=False).cast(pl.String)
    return [frame.with_columns(as_text) for frame in frames]


def _truths(kind: pl.DataType, place: str, wanted: type[pl.DataType] | None) -> Iterator[str]:
    """The names that lead to values of a `wanted` type in a column (None: to numbers)."""
    if isinstance(kind, (pl.List, pl.Array)):
        yield from _truths(kind.inner, f"{place}[]", wanted)  # type: ignore[arg-type]
    elif isinstance(kind, pl.Struct):
        for each in kind.fields:
            yield from _truths(each.dtype, f"{place}.{each.name}", wanted)  # type: ignore[arg-type]
    elif kind.is_numeric() if wanted is None else kind == wanted:
        yield place


def differ(rows: Sequence[Mapping[str, Any]], held: Sequence[tuple[int, bytes]], unit: str) -> str:
    """The first column whose values are of two kinds, and in which rows; "" where they differ
    deeper."""
    seen: dict[str, tuple[str, int]] = {}
    for row, (number, _) in zip(rows, held, strict=True):
        for name, value in row.items():
            kind = _KINDS.get(type(value))
            if kind is None:
                continue
            first, at = seen.setdefault(name, (kind, number))
            if first != kind:
                return f"`{name}` is {first} in {unit} {at} and {kind} in {unit} {number}"
    return ""


_KINDS = {
    **dict.fromkeys((int, float, bool), "a number"),
    str: "a text",
    list: "a list",
    dict: "an object",
}
"""Type of a JSON value -> what to call it."""
