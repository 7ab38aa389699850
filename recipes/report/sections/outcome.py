"""What the comparison says: the headline, the table of scores, the interval plots, and who can be
told from whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.comparing.metrics import lower_is_better
from recipes.report.drawing.figures import Interval, intervals
from recipes.report.drawing.marks import number
from recipes.report.sources import Colours, Record

CANNOT_TELL = "cannot tell"

Entry = Mapping[str, Any]
"""A score or a difference, as comparison.json holds it."""
Metric = tuple[str, str]
"""(benchmark, metric)"""


def headline(comparison: Entry) -> Record:
    """The primary benchmark's verdict as one sentence, and one line with the figures for each pair
    that it rests on.

    Pairs with the baseline, or all pairs where there is none. Never more than the comparison's own
    verdicts say.
    """
    baseline = comparison.get("baseline")
    differences = comparison.get("differences", [])
    primary = [pair for pair in differences if _is_primary(comparison, _metric(pair))]
    pairs = [pair for pair in primary if baseline in (pair["a"], pair["b"])] or primary
    if not pairs:
        sentence = "No difference between arms was measured on a primary benchmark."
        return {"sentence": sentence, "lines": []}
    first = _metric(pairs[0])
    pairs = [pair for pair in pairs if _metric(pair) == first]
    verdicts = "; ".join(_verdicts(pairs, baseline))
    sentence = f"On {first[0]} ({first[1]}), the primary benchmark: {verdicts}."
    scopes = [str(pair.get("scope", "")) for pair in pairs]
    if any(scope.startswith("these two checkpoints") for scope in scopes):
        sentence += " One training seed: this is about these checkpoints, not about the filters."
    return {"sentence": sentence, "lines": [_line(pair) for pair in pairs]}


def _verdicts(pairs: Sequence[Entry], baseline: str | None) -> list[str]:
    """Who is better than whom, then who cannot be told from whom."""
    better = [f"{p['verdict']} than {_loser(p)}" for p in pairs if p["verdict"] != CANNOT_TELL]
    parts = [_join(better)] if better else []
    untold = [(p["a"], p["b"]) for p in pairs if p["verdict"] == CANNOT_TELL]
    if untold and baseline is None:
        together = [f"{a} and {b}" for a, b in untold]
        parts.append(f"{_join(together)} cannot be told apart")
    elif untold:
        others = [a if b == baseline else b for a, b in untold]
        parts.append(f"{_join(others)} cannot be told from {baseline}")
    return parts


def _loser(pair: Entry) -> str:
    return str(pair["b"] if pair["verdict"] == f"{pair['a']} is better" else pair["a"])


def _line(pair: Entry) -> str:
    """A difference with its interval and its p-value, and what could have been found."""
    low, high = signed(pair["simultaneous_lower"]), signed(pair["simultaneous_upper"])
    text = (
        f"{pair['a']} − {pair['b']}: {signed(pair['difference'])},"
        f" simultaneous 95 % interval {low} to {high}, {number(pair['n'])} items"
    )
    if pair.get("p_holm") is not None:
        text += f", p = {number(pair['p_holm'], 2)} (Holm)"
    if pair["verdict"] == CANNOT_TELL and pair.get("detectable") is not None:
        least = number(pair["detectable"], 2)
        text += f"; a difference of {least} would be found 8 times in 10"
    return f"{text}: {pair['verdict']}."


def scores(comparison: Entry, colours: Colours) -> list[Record]:
    """One entry a (benchmark, metric), the primary first: `cells` by arm, and the interval plot
    with the baseline's score as its line."""
    baseline = str(comparison.get("baseline"))
    entries = []
    for metric, family in _families(comparison.get("scores", [])).items():
        cells = {score["arm"]: score for score in family}
        rows = []
        for arm in filter(cells.get, colours):
            ends = map(cells[arm].get, ("value", "lower", "upper"))
            rows.append(Interval(arm, colours[arm], *ends))
        label = f"{' '.join(metric)}: each arm's score with its 95 % interval"
        figure = intervals(rows, label, cells.get(baseline, {}).get("value"))
        primary = any(score.get("primary") for score in family)
        entries.append(_head(metric, primary) | {"cells": cells, "figure": figure})
    return sorted(entries, key=_primary_first)


def matrices(comparison: Entry, arms: Sequence[str]) -> list[Record]:
    """One matrix a (benchmark, metric), the primary first: `rows` of (arm, cells), a cell None or
    row minus column with verdict and tone."""
    entries = []
    for metric, family in _families(comparison.get("differences", [])).items():
        cells: dict[tuple[str, str], Record] = {}
        for pair in family:
            a, b = pair["a"], pair["b"]
            cells[a, b] = _cell(a, pair, 1)
            cells[b, a] = _cell(b, pair, -1)
        compared = {arm for pair in cells for arm in pair}
        names = [arm for arm in arms if arm in compared]
        rows = []
        for row in names:
            rows.append((row, [cells.get((row, column)) for column in names]))
        head = _head(metric, _is_primary(comparison, metric))
        entries.append(head | {"names": names, "rows": rows})
    return sorted(entries, key=_primary_first)


def _cell(row: str, pair: Entry, sign: int) -> Record:
    """A difference as it stands (`sign` 1), or turned round with its interval (-1)."""
    ends = [pair["simultaneous_lower"], pair["simultaneous_upper"]]
    low, high = (None if end is None else sign * end for end in ends[::sign])
    verdict = "better" if pair["verdict"] == f"{row} is better" else "worse"
    tone = verdict
    if pair["verdict"] == CANNOT_TELL:
        tone, verdict = "untold", CANNOT_TELL
    return {
        "difference": signed(sign * pair["difference"]),
        "lower": signed(low),
        "upper": signed(high),
        "tone": tone,
        "pair": pair,
        "verdict": verdict,
    }


def judge_warnings(judges: Sequence[Entry]) -> list[str]:
    """A sentence for each benchmark whose judge mostly changed its verdict when the two answers
    changed places.

    `judges`: the counts of each judging, with `benchmark`, `position_pairs` and
    `position_consistency` (0 to 1).
    """
    asked: dict[str, int] = defaultdict(int)
    kept: dict[str, float] = defaultdict(float)
    for judge in judges:
        pairs = judge.get("position_pairs")
        if pairs:
            asked[judge["benchmark"]] += pairs
            kept[judge["benchmark"]] += pairs * judge["position_consistency"]
    return [
        f"{benchmark}: with the two answers in changed places the judge kept its verdict in only "
        f"{100 * kept[benchmark] / pairs:.0f} % of {pairs:,} pairs, so its scores say more about "
        "the order than about the answers."
        for benchmark, pairs in asked.items()
        if kept[benchmark] < pairs / 2
    ]


def signed(value: float | None) -> str:
    """A difference for people: always with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and value > 0 else text


def _metric(entry: Entry) -> Metric:
    return entry["benchmark"], entry["metric"]


def _families(entries: Iterable[Entry]) -> dict[Metric, list[Entry]]:
    families: dict[Metric, list[Entry]] = {}
    for entry in entries:
        families.setdefault(_metric(entry), []).append(entry)
    return families


def _head(metric: Metric, primary: bool) -> Record:
    benchmark, name = metric
    return {
        "benchmark": benchmark,
        "metric": name,
        "primary": primary,
        "lower_is_better": lower_is_better(name),
    }


def _primary_first(entry: Entry) -> bool:
    return not entry["primary"]


def _is_primary(comparison: Entry, metric: Metric) -> bool:
    """Whether this figure decides: the one whose scores say so, else any of the primary
    benchmark."""
    scores = comparison.get("scores", [])
    deciding = [_metric(score) for score in scores if score.get("primary")]
    if deciding:
        return metric in deciding
    return comparison.get("primary") in (metric[0], "/".join(metric))


def _join(parts: Sequence[str]) -> str:
    """One, two and three."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
