"""Why an arm did not take a row, with the row's own values: "quality 2.659 is not > 2.8"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.columns import FAILED
from core.files import read_json
from synth.filters.rule import Rule
from synth.filters.verdicts import UNANSWERED, UNFINISHED
from synth.filters.where import Node

LONGEST = 60
"""Characters of a text that are shown."""
PLAIN = {
    UNANSWERED: "it was never answered",
    UNFINISHED: "a further turn was never answered",
    "held out": "it is held out for the evaluation",
}
"""Reasons in more words."""


def sentence(reason: str, rule: Rule | None, row: Mapping[str, Any] | None, funnel: Path) -> str:
    """What became of a row that an arm dropped for this `reason`. `rule`: the arm's; `row`: what is
    known of it; `funnel`: the file that says how the arm chose."""
    if reason in PLAIN:
        return PLAIN[reason]
    if reason == "not chosen":
        return _others_first(funnel)
    if rule is None or rule.where is None or row is None:
        return reason
    if reason == "tag failed":
        measures = rule.measures.filling(rule.tested)
        failed = [name for name in measures if row.get(f"status:{name}") == FAILED]
        return f"{reason}: {', '.join(failed)}" if failed else reason
    for predicate in rule.where.predicates():
        if predicate.text == reason:
            return of_predicate(predicate, row)
    return reason


def _others_first(funnel: Path) -> str:
    """The budget was filled by rows that stood before it."""
    if not funnel.is_file():
        return "not chosen"
    said = read_json(funnel)
    chosen, allowed = said.get("chosen"), said.get("allowed")
    return (
        f"not chosen: {chosen} of {allowed} rows filled the budget before it, by {said['choose']}"
    )


def of_predicate(predicate: Node, row: Mapping[str, Any]) -> str:
    """That a predicate is false of a row; with the value in the column's place where it is one
    test of one column."""
    columns = sorted(predicate.columns)
    if any(row.get(column) is None for column in columns):
        return f"{predicate.text} is not true"
    first = columns[0]
    test = predicate.text.removeprefix(f"{first} ")
    if not predicate.children and len(columns) == 1 and test != predicate.text:
        return f"{first} {shown(row[first])} is not {test}"
    values = ", ".join(f"{column} is {shown(row[column])}" for column in columns)
    return f"{predicate.text} is not true: {values}"


def shown(value: object) -> str:
    """A value as it would be written in `where`; long texts are cut."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 3]}..."
    return f"'{text}'" if isinstance(value, str) else text
