"""What the arguments of `choose` may be: one check a kind of argument, of its text and its place in
the recipe. Each raises UserError."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from core.errors import UserError, nearest
from synth.filters.choosing.label_gain import GAINS
from synth.measures import Field_

Columns = Mapping[str, Field_]
"""What a choice may name."""
Check = Callable[[str, str, Columns], None]
"""Refuses an argument of a choice: of it, its place in the recipe, and the columns there are."""

PARTS = ("top", "middle", "low")
_TEXTS = ("instruction", "raw_instruction", "sanitized_instruction", "response", "thinking")
"""Long texts that hold no labels."""


def check_known(column: str, at: str, fields: Columns) -> None:
    if column not in fields:
        raise UserError(f"{at}: unknown column `{column}`{nearest(column, fields)}.")


def check_ordered(column: str, at: str, fields: Columns) -> None:
    check_known(column, at, fields)
    if fields[column].kind not in ("number", "ordered"):
        raise UserError(
            f"{at}: `{column}` has no order, so there is no top of it; "
            "choose by a number or an ordered label."
        )


def check_groups(column: str, at: str, fields: Columns) -> None:
    check_known(column, at, fields)
    if fields[column].kind in ("number", "labels") or fields[column].long:
        raise UserError(
            f"{at}: `{column}` has no groups to balance; name a label, such as task_category."
        )


def check_boundary(label: str, at: str, fields: Columns) -> None:
    labels = fields["difficulty"].labels[:-1]
    if label not in labels:
        raise UserError(
            f"{at}: '{label}' does not part the difficulties in two{nearest(label, labels)}."
        )


def check_cosine(text: str, at: str, fields: Columns) -> None:
    if not 0 < _number(text) <= 1:
        raise UserError(f"{at}: '{text}' is no cosine between 0 and 1; write 0.9, for example.")


def check_share(text: str, at: str, fields: Columns) -> None:
    if not 0 <= _number(text) <= 1:
        raise UserError(f"{at}: '{text}' is no number from 0 to 1; write 0.5, for example.")


def _number(text: str) -> float:
    """The number that is written; outside everything where it is none."""
    try:
        return float(text)
    except ValueError:
        return -1.0


def check_labels(column: str, at: str, fields: Columns) -> None:
    check_known(column, at, fields)
    field = fields[column]
    if field.kind not in ("labels", "text") or column in _TEXTS:
        raise UserError(
            f"{at}: `{column}` holds no lists of labels; name a column of lists, or `knowledge` or "
            "`intent` of an explaining difficulty tagger."
        )


def check_part(part: str, at: str, fields: Columns) -> None:
    if part not in PARTS:
        raise UserError(f"{at}: '{part}' is no part{nearest(part, PARTS)}; there are {PARTS}.")


def check_gain(gain: str, at: str, fields: Columns) -> None:
    if gain not in GAINS:
        raise UserError(f"{at}: '{gain}' is no gain{nearest(gain, GAINS)}; there are {GAINS}.")


def check_file(name: str, at: str, fields: Columns) -> None:
    if not Path(name).expanduser().is_file():
        raise UserError(f"{at}: the file {name} does not exist; check its name.")


def check_text(text: str, at: str, fields: Columns) -> None:
    """Anything: whoever knows what it may be checks it."""
