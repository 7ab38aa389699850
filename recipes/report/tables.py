"""The page's figures as tables, for whoever goes on with them: files beside the page, and W&B's
tables. Both are made of the same numbers as the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from core.store import canonical
from recipes.report.sources import Record

LEFT_OUT = ("figure", "bar", "css", "dash")
"""Drawn forms of what a table has as numbers, and how they are drawn."""


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
            {"item": row["item"], "text": row["text"], "distance": row["distance"]}
            | {"arm": arm, "value": value}
            for row in shown["apart"]["rows"]
            for arm, _, value in row["values"]
        ]
    )
    lengths = shown["lengths"].get("rows", [])
    tables["lengths"] = table(lengths)
    tables["nearest"] = table(
        [
            {"item": row["item"], "prompt": row["text"], **near}
            for row in shown["apart"]["rows"]
            for near in row.get("nearest", [])
        ]
    )
    tables |= _beside(shown)
    tables["judges"] = table(shown["cards_of_judges"])
    tables["judgings"] = table(shown["judges"])
    tables["costs"] = table(shown["costs"]["rows"])
    tables["bills"] = table(shown["costs"]["bills"])
    tables |= _of_rows(shown)
    tables["filters"] = table(
        [
            {"selection": funnel["name"], "arm": funnel["arm"], **step}
            for funnel in shown["funnels"]
            for step in funnel["steps"]
        ]
    )
    tables["trainings"] = table([{**row, **row["ledger"]} for row in shown["trainings"]])
    tables["provenance"] = table(shown["provenance"])
    return {name: each for name, each in tables.items() if not each.is_empty()}


def _beside(shown: Record) -> dict[str, pl.DataFrame]:
    """What stands beside the comparison of all arms: its controls, pairs that were judged head to
    head, people's labels, and what selections have in common with each other (`overlap`) and with
    what arms are measured on (`near_duplicates`)."""
    comparison, people = shown["comparison"], shown["people"]
    common = comparison.get("overlap") or {}
    agreed = [{"who": "judge and people", **(people.get("agreement") or {})}]
    agreed += [{"who": "people among themselves", **(people.get("people") or {})}]
    return {
        "controls": table([row for one in comparison.get("controls", []) for row in controls(one)]),
        "head_to_head": table([_duel(one) for one in shown["duels"]]),
        "labels": table([_labelled(row) for row in people.get("differences", [])]),
        "agreement": table([one for one in agreed if len(one) > 1]),
        "overlap": table(common.get("pairs", [])),
        "near_duplicates": table(common.get("near", [])),
    }


def controls(shown: Mapping[str, Any]) -> list[Record]:
    """The controls of a metric, a row each: what share of its answers was moved (0 of a second
    sample), its difference from the arm that it is made of, and whether that was detected."""
    rows = []
    for row in [*shown.get("negative", []), *shown.get("shuffled", [])]:
        named = {name: shown.get(name) for name in ("benchmark", "metric", "primary")}
        known = {"arm": row["arm"], "of": row["of"], "share": float(row.get("share", 0.0))}
        known["detected"] = row["detected"] if "detected" in row else not row["ties"]
        rows.append(named | known | {k: v for k, v in row.items() if k not in ("ties", *known)})
    return rows


def _duel(one: Record) -> Record:
    """A pair that was judged head to head, and its difference over the baseline."""
    over = _seen_from(one["a"], one["over"]["pair"]) if one["over"] else {}
    direct: Record = one["direct"]["pair"]
    return direct | {f"over_baseline_{name}": end for name, end in over.items()}


def _seen_from(arm: str, pair: Mapping[str, Any]) -> Record:
    """A difference with its simultaneous interval, as `arm`, one of the two, sees it."""
    sign = 1 if pair["a"] == arm else -1
    ends = [pair["simultaneous_lower"], pair["simultaneous_upper"]]
    low, high = (None if end is None else sign * end for end in ends[::sign])
    named = {"difference": sign * pair["difference"]}
    return named | {"simultaneous_lower": low, "simultaneous_upper": high}


def _labelled(row: Mapping[str, Any]) -> Record:
    """What people's labels say of two arms: with the judge's word on all prompts, and alone."""
    flat = {name: value for name, value in row.items() if not isinstance(value, dict)}
    for name in ("difference", "labels_alone"):
        found = row.get(name) or {}
        flat |= {name: found.get("value")}
        flat |= {f"{name}_{end}": found.get(end) for end in ("lower", "upper")}
    return flat


def _of_rows(shown: Record) -> dict[str, pl.DataFrame]:
    """How arms came to their rows: why some were not chosen, the parts of mixtures, what each
    column cost, and the tags of the pool and of each selection as the page has them."""
    return {
        "not_chosen": table(
            [
                {"selection": funnel["name"], "arm": funnel["arm"], "reason": reason, "rows": rows}
                for funnel in shown["funnels"]
                for reason, rows in funnel["reasons"]
            ]
        ),
        "mixtures": table(
            [
                {"selection": mixture["name"], "arm": mixture["arm"], **part}
                for mixture in shown["mixtures"]
                for part in mixture["parts"]
            ]
        ),
        "columns": table(shown["cost"].get("columns", [])),
        "tags": table([row for card in shown["cards"] for row in _tagged(card)]),
    }


def _tagged(card: Record) -> list[Record]:
    """The numbers of a tag's card, a row each cell."""
    return [
        {"tag": card["name"], "row": row[0], "column": column, "value": cell}
        for row in card["rows"]
        for column, cell in zip(card["head"][1:], row[1:], strict=True)
    ]


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
    return flat | _seen_from(row["arm"], against["pair"]) | {"verdict": against["verdict"]}
