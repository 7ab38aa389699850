"""A comparison as tables: one a figure for a terminal, one of plain values for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eval.comparing.differences import Row
from eval.comparing.estimates import IS_BETTER
from eval.comparing.shown.scales import shown


@dataclass(frozen=True)
class Figure:
    """One metric of a benchmark: what its table is headed by, and a row an arm."""

    title: str
    rows: list[dict[str, str]]


def figures(
    comparison: Mapping[str, Any], unusable: Mapping[str, str] | None = None
) -> list[Figure]:
    """A table each metric, the primary first: each arm's score, its difference from the baseline
    (or the first arm) and the verdict. `unusable`: benchmark -> why its scores say nothing."""
    first = _first(comparison)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in values(comparison):
        found.setdefault((row["benchmark"], row["metric"]), []).append(row)
    tables = []
    for (benchmark, _), rows in found.items():
        counted = len({row["n"] for row in rows}) > 1
        title = _title(rows, (unusable or {}).get(benchmark, ""))
        tables.append(Figure(title, [_row(row, first, counted=counted) for row in rows]))
    return tables


def values(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each arm's scores as plain values, primary benchmark first, with its difference from the
    baseline (or the first arm), its simultaneous interval, the verdict and what it is about (null:
    there is none)."""
    first = _first(comparison)
    differences = comparison["differences"]
    against = {
        (d["benchmark"], d["metric"], d["a"]): d
        for d in [*differences, *map(_turned, differences)]
        if d["b"] == first
    }
    against = _of_controls(comparison, first) | against
    rows = []
    for score in sorted(map(shown, comparison["scores"]), key=lambda s: not s["primary"]):
        d = against.get((score["benchmark"], score["metric"], score["arm"]), {})
        scope = str(d["scope"]).split(";")[0] if d else None
        rows.append(
            {
                "benchmark": score["benchmark"],
                "metric": score["metric"],
                "primary": score["primary"],
                "lower_is_better": score.get("lower_is_better"),
                "arm": score["arm"],
                "reference": score["reference"],
                "value": score["value"],
                "lower": score["lower"],
                "upper": score["upper"],
                "n": score["n"],
                "unjudged": score["unjudged"],
                "against": first if d else None,
                "difference": d.get("difference"),
                "simultaneous_lower": d.get("simultaneous_lower"),
                "simultaneous_upper": d.get("simultaneous_upper"),
                "verdict": d.get("verdict"),
                "scope": scope,
            }
        )
    return rows


def _first(comparison: Mapping[str, Any]) -> str:
    return str(comparison["baseline"] or comparison["arms"][0]["name"])


def _title(rows: list[dict[str, Any]], unusable: str) -> str:
    """The figure's name and what holds for all of its rows."""
    said = ["primary" if rows[0]["primary"] else "exploratory"]
    said += ["lower is better"] if rows[0]["lower_is_better"] else []
    scopes = {row["scope"] for row in rows if row["scope"]}
    said += [f"of {scope}" for scope in sorted(scopes)]
    counts = {row["n"] for row in rows}
    said += [f"{counts.pop():,} items"] if len(counts) == 1 else []
    said += [f"UNUSABLE: {unusable}"] if unusable else []
    return f"{rows[0]['benchmark']} {rows[0]['metric']} ({', '.join(said)})"


def _row(row: Mapping[str, Any], first: str, *, counted: bool) -> dict[str, str]:
    """An arm's line; with `counted` also how many items its score is of."""
    return {
        "arm": row["arm"],
        "score": " ".join(_score(row)),
        **({"items": f"{row['n']:,}"} if counted else {}),
        f"against {first}": _interval(row, "difference", "simultaneous_", "+.3g"),
        "verdict": _verdict(row, first),
    }


def _score(row: Mapping[str, Any]) -> Iterator[str]:
    """The score, with what is missing of it."""
    if row["reference"]:
        yield f"{row['value']:.4g} (reference)"
        return
    yield _interval(row, "value", "", ".4g")
    if row["unjudged"]:
        yield f"({row['unjudged']:,} unjudged)"


def _verdict(row: Mapping[str, Any], first: str) -> str:
    """The verdict as seen from the row's own arm."""
    verdict = row["verdict"]
    if verdict is None:
        return "baseline" if row["arm"] == first else ""
    if verdict == f"{row['arm']}{IS_BETTER}":
        return "better"
    return "worse" if verdict == f"{first}{IS_BETTER}" else str(verdict)


def _of_controls(comparison: Mapping[str, Any], first: str) -> dict[tuple[str, str, str], Row]:
    """The difference of each control from the arm that it is made of, where that is `first`."""
    found: dict[tuple[str, str, str], Row] = {}
    for shown_of in comparison.get("controls", []):
        for row in [*shown_of["negative"], *shown_of["shuffled"]]:
            if row["of"] == first:
                found[shown_of["benchmark"], shown_of["metric"], row["arm"]] = row
    return found


def _turned(difference: Row) -> Row:
    """The same difference, seen from the other arm."""
    low = difference["simultaneous_lower"]
    high = difference["simultaneous_upper"]
    turned = {
        "a": difference["b"],
        "b": difference["a"],
        "difference": 0 - difference["difference"],
    }
    if low is not None:
        turned |= {"simultaneous_lower": 0 - high, "simultaneous_upper": 0 - low}
    return difference | turned


def _interval(row: Mapping[str, Any], value: str, ends: str, form: str) -> str:
    """A figure and, where it has one, its interval, in the number format `form`."""
    if row[value] is None:
        return "" if ends else "-"
    low, high = row[f"{ends}lower"], row[f"{ends}upper"]
    interval = "" if low is None or low == high else f" [{low:{form}}, {high:{form}}]"
    return f"{row[value]:{form}}{interval}"
