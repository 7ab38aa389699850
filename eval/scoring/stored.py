"""Stored judgments as every reader here takes them: row after row, each with the words that name
its place in an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]


def numbered(rows: Iterable[Row], where: str) -> Iterator[tuple[str, Row]]:
    """("WHERE, row NUMBER", row) of each row, from 1."""
    for number, row in enumerate(rows, 1):
        yield f"{where}, row {number}", row


def short_name(model: str) -> str:
    """A model's name without its maker, as the official tables have it."""
    return model.rsplit("/", 1)[-1]
