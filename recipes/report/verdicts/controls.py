"""What the controls of an experiment show: arms of which the answer is known beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eval.comparing.controls import said
from recipes.report.drawing.figures import Interval, intervals
from recipes.report.sources import Colours, Record
from recipes.report.verdicts.outcome import deciding

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


def doubts(comparison: Mapping[str, Any]) -> list[str]:
    """Why the figure that decides is not to be believed, a few words each; none where its controls
    came out as they must, or none was scored."""
    return [reason for shown in _deciding(comparison) for reason in _reasons(shown)]


def line(comparison: Mapping[str, Any]) -> Record:
    """What the controls of the figure that decides show, as one line (`text`), and whether it
    speaks `against` the experiment; {} where none was scored."""
    for shown in _deciding(comparison):
        failed = list(_reasons(shown))
        text = "; ".join([*failed, *_held(shown)])
        return {"text": f"Controls{' failed' if failed else ''}: {text}.", "against": bool(failed)}
    return {}


def _deciding(comparison: Mapping[str, Any]) -> list[Shown]:
    """What is shown of the controls of the figure that decides, if anything."""
    family = deciding(comparison)
    every: list[Shown] = comparison.get("controls", [])
    own = [shown for shown in every if family == (shown["benchmark"], shown["metric"])]
    return [shown for shown in own if shown.get("negative") or shown.get("shuffled")]


def _reasons(shown: Shown) -> Iterator[str]:
    """What came out otherwise than it must."""
    shuffled = shown.get("shuffled", [])
    if shown.get("sees_nothing"):
        largest = max(row["share"] for row in shuffled)
        yield f"not even {largest:.0%} wrong answers are told from right ones"
    for row in shuffled:
        if row["verdict"] == f"{row['arm']} is better":
            yield f"{row['share']:.0%} wrong answers are better than none"
    for row in shown.get("negative", []):
        if not row["ties"]:
            yield f"{row['arm']}, a second random sample, is no tie with {row['of']}"


def _held(shown: Shown) -> Iterator[str]:
    """What came out as it must."""
    for row in shown.get("negative", []):
        if row["ties"]:
            yield f"{row['arm']}, a second random sample, ties with {row['of']}"
    smallest = shown.get("smallest_detected")
    if smallest is not None:
        missed = [f"{row['share']:.0%}" for row in shown["shuffled"] if row["share"] < smallest]
        unseen = f" ({' and '.join(missed)} are not)" if missed else ""
        yield f"wrong answers are detected from {smallest:.0%} on{unseen}"


def _rows(shown: Shown, colours: Colours) -> Iterator[Interval]:
    """The second samples, then the shuffled arms by rising share."""
    for row in [*shown.get("negative", []), *shown.get("shuffled", [])]:
        ends = row["difference"], row["simultaneous_lower"], row["simultaneous_upper"]
        yield Interval(str(row["arm"]), colours.get(row["arm"], ""), *ends)
