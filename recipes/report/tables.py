"""The page's figures as tables, for whoever goes on with them: files beside the page, and W&B's
tables. Both are made of the same numbers as the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from core.store import canonical
from recipes.report.sources import Record

LEFT_OUT = ("figure", "bar")
"""Drawn forms of what a table has as numbers."""


def of_comparison(comparison: Mapping[str, Any]) -> dict[str, pl.DataFrame]:
    """Scores, differences and the components of their errors as comparison.json has them, what is
    no plain value as JSON text; those that are empty are left out."""
    named = {name: comparison.get(name, []) for name in ("scores", "differences", "components")}
    return {name: table(rows) for name, rows in named.items() if rows}


def of_page(shown: Record) -> dict[str, pl.DataFrame]:
    """All tables of a page by name: of_comparison's, and what the page adds to it."""
    tables = of_comparison(shown["comparison"])
    tables["seeds"] = table(
        [
            {"benchmark": benchmark, "metric": metric, "arm": arm, "seed": seed, "score": score}
            for (benchmark, metric, arm), seeds in shown["seeds"].items()
            for seed, score in seeds
        ]
    )
    tables["leaderboard"] = table([_ranked(row) for row in shown["board"].get("rows", [])])
    tables["disagreements"] = table(
        [
            {"item": row["item"], "distance": row["distance"], "arm": arm, "value": value}
            for row in shown["apart"]["rows"]
            for arm, _, value in row["values"]
        ]
    )
    lengths = shown["lengths"].get("rows", [])
    tables["lengths"] = table([{**row, "css": None} for row in lengths])
    tables["judges"] = table(shown["cards_of_judges"])
    tables["judgings"] = table(shown["judges"])
    tables["costs"] = table(shown["costs"]["rows"])
    tables["bills"] = table(shown["costs"]["bills"])
    tables["filters"] = table(
        [
            {"selection": funnel["name"], "arm": funnel["arm"], **step}
            for funnel in shown["funnels"]
            for step in funnel["steps"]
        ]
    )
    tables["trainings"] = table(
        [{**row, "css": None, "dash": None, **row["ledger"]} for row in shown["trainings"]]
    )
    return {name: each for name, each in tables.items() if not each.is_empty()}


def table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows of different fields as one table, without what is drawn and what is null in every row;
    lists and objects as JSON text."""
    plain = []
    for row in rows:
        kept = {name: value for name, value in row.items() if name not in LEFT_OUT}
        for name, value in kept.items():
            if isinstance(value, (list, tuple, dict)):
                kept[name] = canonical(value)
        plain.append(kept)
    frame = pl.DataFrame(plain, infer_schema_length=None, strict=False)
    return frame.select(name for name in frame.columns if frame[name].null_count() < len(frame))


def _ranked(row: Record) -> Record:
    """An arm of the leaderboard with the numbers of its difference from the baseline, seen from the
    arm."""
    score, against = row["score"], row["against"]
    flat = {"arm": row["arm"], "baseline": row["baseline"], "seeds": row["seeds"]}
    flat |= {name: score.get(name) for name in ("value", "lower", "upper", "n", "unjudged")}
    if against is None:
        return flat
    pair = against["pair"]
    sign = 1 if pair["a"] == row["arm"] else -1
    ends = [pair["simultaneous_lower"], pair["simultaneous_upper"]]
    low, high = (None if end is None else sign * end for end in ends[::sign])
    return flat | {
        "difference": sign * pair["difference"],
        "simultaneous_lower": low,
        "simultaneous_upper": high,
        "verdict": against["verdict"],
    }
