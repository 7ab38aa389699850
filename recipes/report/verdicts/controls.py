"""What the controls of an experiment show: arms of which the answer is known beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eval.comparing.controls import said
from recipes.report.drawing.figures import Interval, intervals
from recipes.report.sources import Colours, Record

Shown = Mapping[str, Any]
"""What comparison.json says of the controls of one metric."""


def controls(comparison: Mapping[str, Any], colours: Colours) -> list[Record]:
    """One entry a metric with controls, the primary first: benchmark, metric, `lines` (see below),
    and a `figure` of each control's difference from the
    arm that it is made of."""
    entries = []
    for shown in comparison.get("controls", []):
        rows = list(_rows(shown, colours))
        where = f"{shown['benchmark']} {shown['metric']}"
        label = f"{where}: each control minus the arm it is made of, simultaneous 95 % intervals"
        entries.append(
            {
                "benchmark": shown["benchmark"],
                "metric": shown["metric"],
                "primary": shown.get("primary", False),
                "lines": lines(shown),
                "figure": intervals(rows, label, 0.0),
            }
        )
    return sorted(entries, key=lambda entry: not entry["primary"])


def arms(comparison: Mapping[str, Any]) -> dict[str, str]:
    """The control arms, and what each is for people."""
    named: dict[str, str] = {}
    for shown in comparison.get("controls", []):
        named |= {row["arm"]: "second sample" for row in shown.get("negative", [])}
        for row in shown.get("shuffled", []):
            named[row["arm"]] = f"{row['share']:.0%} wrong"
    return named


def lines(shown: Shown) -> list[Record]:
    """What the controls of a metric show, a sentence each (`text`), and whether it speaks `against`
    the experiment."""
    return [{"text": text, "against": against} for text, against in said(dict(shown))]


def _rows(shown: Shown, colours: Colours) -> Iterator[Interval]:
    """The second samples, then the shuffled arms by rising share."""
    for row in [*shown.get("negative", []), *shown.get("shuffled", [])]:
        ends = row["difference"], row["simultaneous_lower"], row["simultaneous_upper"]
        yield Interval(str(row["arm"]), colours.get(row["arm"], ""), *ends)
