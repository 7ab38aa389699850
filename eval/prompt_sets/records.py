"""Records of files that nobody here wrote: prompts, answers, annotations, scores."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError, json_kind
from core.files import RepeatedKeyError, each_once

UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error, pl.exceptions.PolarsError)
"""What reading a file raises that is damaged."""


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) from a .jsonl file (number = line), from a .json file that holds one list
    (number = place in it, from 1), both also as .gz, or from a .parquet file (number = row).

    Raises UserError, naming file and place, for what cannot be read or is no record.
    """
    for number, record in _values(path):
        if not isinstance(record, dict):
            raise UserError(
                f"{path}, record {number}: it is {json_kind(record)}; a record is an object."
            )
        yield number, record


def _values(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        if path.suffix == ".parquet":
            return enumerate(pl.read_parquet(path, glob=False).iter_rows(named=True), 1)
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    if path.name.removesuffix(".gz").endswith(".json"):
        whole = _parsed(path, 1, text)
        return enumerate(whole if isinstance(whole, list) else [whole], 1)
    # Not splitlines: a prompt may hold other line separators.
    lines = enumerate(text.split("\n"), 1)
    return ((number, _parsed(path, number, line)) for number, line in lines if line.strip())


def _parsed(path: Path, first: int, text: str) -> Any:
    """The value of JSON text that begins in line `first`."""
    try:
        value = json.loads(text, object_pairs_hook=each_once)
        return _spelled(value) if _HALF.search(text) else value
    except RepeatedKeyError as error:
        where = f"line {first}"
        if text.lstrip().startswith("["):
            where = f"record {_twice_in(text)}"
        raise UserError(f"{path}, {where}: {error}; keep one of its values.") from error
    except json.JSONDecodeError as error:
        line = first + error.lineno - 1
        raise UserError(f"{path}, line {line}: not valid JSON ({error.msg}).") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond what Python reads
        raise UserError(f"{path}, line {first}: JSON that cannot be read ({error}).") from error


def _twice_in(text: str) -> int:
    """Which value of a JSON list (from 1) is the first in which a key stands twice."""
    decoder = json.JSONDecoder(object_pairs_hook=each_once)
    place, at = 1, text.index("[") + 1
    while True:
        try:
            _, end = decoder.raw_decode(text, _BETWEEN.match(text, at).end())  # type: ignore[union-attr]
        except RepeatedKeyError:
            return place
        place, at = place + 1, end


_BETWEEN = re.compile(r"[\s,]*")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""What may be half of a surrogate pair."""


def _spelled(value: Any) -> Any:
    """The same value, where a text holds half a character (a surrogate without the other) with its
    escape spelled out: no UTF-8 file, request or digest holds it."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, list):
        return [_spelled(each) for each in value]
    if isinstance(value, dict):
        return {_spelled(name): _spelled(each) for name, each in value.items()}
    return value


def located(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`records`, each with the words that name its place in an error: "PATH, record NUMBER"."""
    for number, record in records(path):
        yield f"{path}, record {number}", record
