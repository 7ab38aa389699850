"""Several answers to one prompt: how they are named, and which prompt they belong to.

The first answer has the prompt's own id, the others "ID#answer-2" and so on: whatever knows one
answer a prompt sees the first. Answers to one prompt are one cluster.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

import polars as pl

from eval.prompt_sets.prompts import Prompt

MARK = "#answer-"
_NAME = re.compile(rf"{MARK}(\d+)$")

Item = TypeVar("Item", bound=Prompt)


def names(prompt: str, answers: int) -> list[str]:
    """The ids of a prompt's answers."""
    return [prompt, *(f"{prompt}{MARK}{number}" for number in range(2, answers + 1))]


def each(items: Iterable[Item], answers: int) -> list[Item]:
    """Every prompt (or task) once for each of its answers, under that answer's id."""
    return [replace(item, id=name) for item in items for name in names(item.id, answers)]


def number(name: str) -> int:
    """Which answer an id names, from 0."""
    found = _NAME.search(name)
    return int(found[1]) - 1 if found else 0


def prompt_of(name: str) -> str:
    """The prompt of an answer's id."""
    return _NAME.sub("", name)


def prompts_of(column: str) -> pl.Expr:
    """As `prompt_of`, of a column."""
    return pl.col(column).str.replace(_NAME.pattern, "")
