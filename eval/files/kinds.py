"""Which tool wrote a file, by the fields of its first record."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from core.errors import UserError
from eval.prompt_sets.records import records

Kind = Literal["alpaca", "arena", "wildbench", "lm-eval", "values", "scores"]

FIELDS: dict[Kind, tuple[frozenset[str], ...]] = {
    "alpaca": (frozenset({"instruction", "generator_1", "generator_2", "preference"}),),
    "arena": (
        frozenset({"games", "model", "question_id"}),
        frozenset({"games", "model", "uid"}),
        frozenset({"model_a", "model_b", "winner"}),
    ),
    "wildbench": (
        frozenset({"session_id", "model_test", "score"}),
        frozenset({"session_id", "model_A", "model_B", "winner"}),
    ),
    "lm-eval": (frozenset({"doc_id", "doc", "filtered_resps"}), frozenset({"doc_id", "metrics"})),
    "scores": (frozenset({"benchmark", "metric", "item", "cluster", "value", "status"}),),
    "values": (frozenset({"item", "value"}),),
}
"""What a record of each kind holds at least; the first kind that fits is it."""

MADE_BY = (
    "sample files of lm-eval (--log_samples), annotations of alpaca_eval, judgments of Arena-Hard "
    "or WildBench, scores of magpie, or JSONL with `item` and `value`"
)

PEEK = 1 << 20
"""Characters of a file that its first record is looked for in before all of it is parsed."""


def kind_of(path: Path) -> Kind | None:
    """The kind of a file; None where it is no known one, or empty. Raises UserError for a file that
    cannot be read."""
    first = _first(path)
    if first is None:
        return None
    return next((kind for kind, forms in FIELDS.items() if _fits(first, forms)), None)


def _fits(first: Mapping[str, Any], forms: tuple[frozenset[str], ...]) -> bool:
    return any(form <= first.keys() for form in forms)


def _first(path: Path) -> Mapping[str, Any] | None:
    """The first record of a file, without parsing the rest where that can be had."""
    if path.suffix == ".parquet":
        return _columns(path)
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as handle:
            text = handle.read(PEEK).lstrip()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    start = text.removeprefix("[").lstrip()
    try:
        value, _ = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError) as error:
        nested = isinstance(error, RecursionError)
        if not nested and len(text) < PEEK and not start.startswith("{"):
            return None
        _, value = next(records(path), (0, None))
    return value if isinstance(value, dict) else None


def _columns(path: Path) -> dict[str, None]:
    import polars as pl

    try:
        return dict.fromkeys(pl.scan_parquet(path, glob=False).collect_schema())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
