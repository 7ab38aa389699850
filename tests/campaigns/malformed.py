"""Malformed inputs, as hypothesis draws them: documents that are right, spoiled at a place or two,
and files whose bytes are then damaged."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import yaml
from hypothesis import strategies as st

Path_ = tuple[Any, ...]

HOSTILE: Sequence[Any] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    -0.0,
    0.5,
    1e308,
    -1e308,
    10**18,
    10**40,
    -(10**30),
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "\n",
    "1e-5",
    "-5",
    "nan",
    "null",
    "yes",
    "..",
    "../../etc/passwd",
    "/",
    "~",
    "/dev/null",
    "a\x00b",
    "\ud800",
    "\udfff tail",
    "\u202e\u2066",
    "\x1b[31mred\x1b[0m",
    "{{ 7 * 7 }}",
    "{% for",
    "' OR 1=1 --",
    "<script>alert(1)</script>",
    "<|im_end|>",
    "x" * 5000,
    "\U0001f600",
    [],
    [None],
    [[]],
    [1, "a", None, {"b": 2}],
    {},
    {"": ""},
    {"role": "user", "content": None},
    {"a": {"b": {"c": [1, {"d": None}]}}},
)
"""What stands where something else should."""

KEYS = ("", " ", "a.b", "\x00", "\ud800", "__proto__", "name", "id", "status", "import", "x" * 300)
"""Names that nobody expects."""

RAW = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\t",
    b"\r",
    b"\r\n",
    b'"',
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"NaN",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\xe2\x80\xa8",
    b"!!python/object/apply:os.system [id]",
    b"&a [*a]",
    b"<<: 1",
    b"---\n",
    b"%",
    b"[" * 3000,
    b"9" * 400,
    b"PK\x03\x04",
    b"PAR1",
)
"""Bytes that are put where none belong."""


@dataclass(frozen=True)
class File:
    """A file as it was made: `rows` of data, where its bytes were not damaged afterwards."""

    name: str
    data: bytes
    rows: int | None = None


def places(value: Any, above: Path_ = ()) -> list[Path_]:
    """Every place in a document, from the top."""
    found = [above]
    if isinstance(value, dict):
        for key, each in value.items():
            found += places(each, (*above, key))
    elif isinstance(value, list):
        for at, each in enumerate(value):
            found += places(each, (*above, at))
    return found


def hostile() -> st.SearchStrategy[Any]:
    """A value that does not belong."""
    return st.one_of(
        st.sampled_from(HOSTILE).map(copy.deepcopy),
        st.text(max_size=8),
        st.integers(),
        st.floats(),
        st.recursive(st.none() | st.booleans() | st.text(max_size=3), st.lists, max_leaves=5),
    )


@st.composite
def spoiled(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """The document with one place or a few replaced, removed, renamed, doubled or wrapped."""
    made = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.sampled_from(places(made)))
        if not at:
            made = draw(hostile()) if draw(st.integers(0, 40)) == 0 else made
            continue
        holder = made
        for key in at[:-1]:
            holder = holder[key]
        _spoil(draw, holder, at[-1])
    return made


def _spoil(draw: st.DrawFn, holder: Any, key: Any) -> None:
    """Do one thing to a key of a mapping or a place of a list."""
    how = draw(
        st.sampled_from(("replace", "replace", "replace", "remove", "add", "rename", "wrap"))
    )
    if how == "remove":
        del holder[key]
    elif how == "wrap":
        holder[key] = draw(st.sampled_from(([holder[key]], {"value": holder[key]})))
    elif how == "replace":
        holder[key] = draw(hostile())
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]) if how == "rename" else draw(hostile()))
    elif how == "add":
        holder[draw(st.sampled_from(KEYS))] = draw(hostile())
    else:
        name = str(key)
        mistyped = (name[:-1], name + name[-1:], name.upper(), name.replace("_", "-"))
        holder[draw(st.sampled_from(mistyped))] = holder.pop(key)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes, cut off, with one flipped, or with some put in, doubled or taken out."""
    how = draw(st.sampled_from(("cut", "flip", "put", "put", "take", "double", "empty", "repeat")))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if how == "cut":
        return data[:at]
    if how == "flip" and data:
        return data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
    if how == "put":
        return data[:at] + draw(st.sampled_from(RAW)) + data[at:]
    if how == "take":
        return data[:at] + data[at + draw(st.integers(1, 40)) :]
    if how == "double":
        return data[:at] + data[max(0, at - 60) : at] + data[at:]
    if how == "empty":
        return draw(st.sampled_from((b"", b"\n", b"   ", b"\xef\xbb\xbf", b"[]", b"{}", b"null")))
    return data + data


def as_json(value: Any, *, ascii_only: bool) -> bytes:
    """JSON as Python writes it: NaN and lone surrogates as they are."""
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


@st.composite
def recipes(draw: st.DrawFn, known: Sequence[dict[str, Any]]) -> bytes:
    """The text of a recipe that has something wrong with it."""
    document = draw(st.sampled_from(known))
    if draw(st.integers(0, 3)):
        document = draw(spoiled(document))
    try:
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=draw(st.booleans()))
        data = text.encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        data = as_json(document, ascii_only=True)
    return draw(damaged(data)) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def overrides(draw: st.DrawFn, known: Sequence[dict[str, Any]]) -> list[str]:
    """One `key.path=value` or a few, as somebody mistypes them."""
    document = draw(st.sampled_from(known))
    found = []
    for _ in range(draw(st.integers(1, 3))):
        keys = [str(key) for key in draw(st.sampled_from(places(document)))]
        if draw(st.booleans()):
            keys.append(draw(st.sampled_from((*KEYS, "model", "rows", "where", "seeds"))))
        sign = draw(st.sampled_from(("=", "=", "=", "=", "==", ":", "", " = ")))
        value = draw(hostile())
        plain = isinstance(value, str) and draw(st.booleans())
        found.append(".".join(keys) + sign + (value if plain else json.dumps(value)))
    return found


@st.composite
def row_files(draw: st.DrawFn, known: Sequence[list[dict[str, Any]]]) -> File:
    """A file of rows: some spoiled, in any of the formats that are read, its bytes perhaps
    damaged."""
    rows = [dict(row) for row in draw(st.sampled_from(known))]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(rows) - 1))
        made = draw(spoiled(rows[at]))
        rows[at] = made if isinstance(made, dict) else rows[at]
    if draw(st.integers(0, 5)) == 0:
        rows.append(copy.deepcopy(rows[0]))
    ending = draw(st.sampled_from((".jsonl", ".jsonl", ".jsonl", ".json", ".csv", ".parquet")))
    data = written(rows, ending, ascii_only=draw(st.booleans()))
    if data is None:
        ending, data = ".jsonl", as_json(rows[0], ascii_only=True) + b"\n"
        rows = rows[:1]
    count: int | None = len(rows)
    packed = draw(st.integers(0, 9)) == 0 and ending in (".jsonl", ".json", ".csv")
    if packed:
        data, ending = gzip.compress(data, mtime=0), f"{ending}.gz"
    if draw(st.integers(0, 2)) == 0:
        data, count = draw(damaged(data)), None
    return File(f"rows{ending}", data, count)


def written(rows: Sequence[dict[str, Any]], ending: str, *, ascii_only: bool) -> bytes | None:
    """Rows as a file of this kind; None where they cannot be written so."""
    if ending == ".jsonl":
        return b"".join(as_json(row, ascii_only=ascii_only) + b"\n" for row in rows)
    if ending == ".json":
        return as_json(list(rows), ascii_only=ascii_only)
    try:
        if ending == ".csv":
            text = io.StringIO()
            names = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(text, names)
            writer.writeheader()
            writer.writerows(rows)
            return text.getvalue().encode("utf-8", "surrogatepass")
        buffer = io.BytesIO()
        pl.from_dicts(list(rows), infer_schema_length=None).write_parquet(buffer)
        return buffer.getvalue()
    except Exception:  # what polars and csv cannot write is no file that anybody has
        return None


def record_files(
    known: Sequence[list[dict[str, Any]]], name: str = "records"
) -> st.SearchStrategy[File]:
    """A .json or .jsonl file (or .gz) of judgments, prompts or samples, spoiled as rows are."""

    @st.composite
    def drawn(draw: st.DrawFn) -> File:
        rows: Any = copy.deepcopy(draw(st.sampled_from(known)))
        if draw(st.integers(0, 3)):
            made = draw(spoiled(rows))
            rows = made if isinstance(made, list) else rows
        count: int | None = len(rows)
        ascii_only = draw(st.booleans())
        ending = draw(st.sampled_from((".jsonl", ".json")))
        if ending == ".jsonl":
            data = b"".join(as_json(row, ascii_only=ascii_only) + b"\n" for row in rows)
        else:
            data = as_json(rows, ascii_only=ascii_only)
        if draw(st.integers(0, 9)) == 0:
            data, ending = gzip.compress(data, mtime=0), f"{ending}.gz"
        if draw(st.integers(0, 2)) == 0:
            data, count = draw(damaged(data)), None
        return File(f"{name}{ending}", data, count)

    return drawn()


@st.composite
def texts(draw: st.DrawFn, known: Sequence[str]) -> str:
    """A predicate, a choice or another short text, damaged."""
    text = draw(st.sampled_from(known))
    made = draw(damaged(text.encode("utf-8")))
    if draw(st.integers(0, 3)) == 0:
        made = draw(damaged(made))
    return made[:4000].decode("utf-8", "replace")
