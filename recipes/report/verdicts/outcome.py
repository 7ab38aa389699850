"""What the comparison says: the headline, the table of scores, the interval plots, and who can be
told from whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import sqrt
from typing import Any

from eval.comparing.metrics import lower_is_better
from recipes.report.drawing.figures import Interval, intervals
from recipes.report.drawing.marks import finite, number
from recipes.report.sources import Colours, Record
from recipes.report.verdicts.seeds import Seeds

CANNOT_TELL = "cannot tell"
SOURCES = ("prompts", "seeds", "answers", "judges", "rest")
"""What a difference's error is made of, as comparison.json names it."""

Entry = Mapping[str, Any]
"""A score or a difference, as comparison.json holds it."""
Metric = tuple[str, str]
"""(benchmark, metric)"""


def deciding(comparison: Entry) -> Metric | None:
    """The figure that decides: the one whose scores say so, else the first of the primary
    benchmark; None where none was scored."""
    scores = comparison.get("scores", [])
    marked = [_metric(score) for score in scores if score.get("primary")]
    named = [_metric(each) for each in [*scores, *comparison.get("differences", [])]]
    primary = comparison.get("primary")
    own = [metric for metric in named if primary in (metric[0], "/".join(metric))]
    return next(iter([*marked, *own]), None)


def primary_pairs(comparison: Entry) -> list[Entry]:
    """The differences of the figure that decides, as they stand."""
    family = deciding(comparison)
    return [pair for pair in comparison.get("differences", []) if _metric(pair) == family]


def asked(comparison: Entry) -> list[Entry]:
    """The differences that the answer rests on: those of the figure that decides with the baseline,
    or all of them where there is none."""
    baseline = comparison.get("baseline")
    primary = primary_pairs(comparison)
    return [pair for pair in primary if baseline in (pair["a"], pair["b"])] or primary


def lines(comparison: Entry) -> list[str]:
    """The figures of each difference that the answer rests on, a line each."""
    return [_line(pair) for pair in asked(comparison)]


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
    return " ".join([f"{text}: {pair['verdict']}.", *_more(pair)])


def _more(pair: Entry) -> Iterator[str]:
    """What is known of a difference beside its interval: what would settle it, what missing values
    could change, how many rows the two arms share."""
    if (pair.get("settled") or {}).get("sentence"):
        yield pair["settled"]["sentence"]
    missing = pair.get("missing")
    if missing:
        lost, worst = missing["as_losses"], missing["worst_case"]
        low, high = (signed(worst.get(f"simultaneous_{end}")) for end in ("lower", "upper"))
        yield (
            f"{number(missing['cells'])} values are missing: as losses {signed(lost['difference'])}"
            f" ({lost['verdict']}), whatever they are {low} to {high}."
        )
    if pair.get("overlap") is not None:
        yield f"The two have {_shared(pair)} in common (Jaccard)."


def _shared(pair: Entry) -> str:
    """How many of their rows two arms share, and of their instructions where those are others."""
    rows, asked = pair["overlap"], pair.get("overlap_instructions", pair["overlap"])
    shared = f"{100 * rows:.0f} % of their rows"
    return shared if asked == rows else f"{shared} and {100 * asked:.0f} % of their instructions"


def scores(comparison: Entry, colours: Colours, seeds: Seeds) -> list[Record]:
    """One entry a (benchmark, metric), the primary first: `cells` by arm, and the interval plot
    with each seed as a dot and the baseline's score as its line."""
    baseline = str(comparison.get("baseline"))
    entries = []
    for metric, family in _families(comparison.get("scores", [])).items():
        cells = {score["arm"]: score for score in family}
        rows = []
        for arm in filter(cells.get, colours):
            rows.append(interval(cells[arm], colours[arm], seeds))
        label = f"{' '.join(metric)}: each arm's score with its 95 % interval"
        figure = intervals(rows, label, cells.get(baseline, {}).get("value"))
        primary = any(score.get("primary") for score in family)
        entries.append(_head(metric, primary, family) | {"cells": cells, "figure": figure})
    return sorted(entries, key=_primary_first)


def interval(score: Entry, css: str, seeds: Seeds) -> Interval:
    """A score as a figure shows it, with what each seed gave."""
    value, lower, upper = (score[name] for name in ("value", "lower", "upper"))
    arm = str(score["arm"])
    return Interval(arm, css, value, lower, upper, seeds.get((*_metric(score), arm), []))


def matrices(comparison: Entry, arms: Sequence[str]) -> list[Record]:
    """One matrix a (benchmark, metric), the primary first: `rows` of (arm, cells), a cell None or
    row minus column with verdict and tone."""
    entries = []
    for metric, family in _families(comparison.get("differences", [])).items():
        cells: dict[tuple[str, str], Record] = {}
        for pair in family:
            a, b = pair["a"], pair["b"]
            cells[a, b] = seen_from(a, pair)
            cells[b, a] = seen_from(b, pair)
        compared = {arm for pair in cells for arm in pair}
        names = [arm for arm in arms if arm in compared]
        rows = []
        for row in names:
            rows.append((row, [cells.get((row, column)) for column in names]))
        head = _head(metric, _is_primary(comparison, metric), family)
        entries.append(head | {"names": names, "rows": rows})
    return sorted(entries, key=_primary_first)


def seen_from(arm: str, pair: Entry) -> Record:
    """A difference as `arm`, one of the two, sees it: itself minus the other, with the simultaneous
    interval, the verdict and its tone (better, worse, untold), what rows the two share, and the
    pair."""
    sign = 1 if pair["a"] == arm else -1
    ends = [pair["simultaneous_lower"], pair["simultaneous_upper"]]
    low, high = (None if end is None else sign * end for end in ends[::sign])
    verdict = tone = str(pair["verdict"])
    if verdict == CANNOT_TELL or not verdict.endswith(" is better"):
        tone = "untold"
    else:
        verdict = tone = "better" if verdict == f"{arm} is better" else "worse"
    return {
        "difference": signed(sign * pair["difference"]),
        "lower": signed(low),
        "upper": signed(high),
        "tone": tone,
        "pair": pair,
        "verdict": verdict,
        "shared": _shared(pair) if pair.get("overlap") is not None else "",
    }


def components(comparison: Entry) -> list[Record]:
    """Of each figure whose sources of error were told apart, the standard deviations of one
    prompt, seed, answer, judge, and of the rest (None: not measured), the primary first."""
    rows = []
    for known in comparison.get("components", []):
        variances = [known.get(name) for name in SOURCES]
        deviations = [sqrt(v) if finite(v) and v >= 0 else None for v in variances]
        rows.append({**known, "deviations": deviations})
    return sorted(rows, key=_primary_first)


def unusable(judges: Sequence[Entry]) -> dict[str, str]:
    """Benchmarks whose judge mostly changed its verdict when the two answers changed places, and
    how seldom it kept it.

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
    return {
        benchmark: f"the judge kept its verdict in {100 * kept[benchmark] / pairs:.0f} % of "
        f"{pairs:,} pairs when the answers changed places"
        for benchmark, pairs in asked.items()
        if kept[benchmark] < pairs / 2
    }


def judge_warnings(judges: Sequence[Entry]) -> list[str]:
    """A sentence for each benchmark whose scores are unusable for its judge."""
    return [
        f"{benchmark}: {why}, so its scores say more about the order than about the answers."
        for benchmark, why in unusable(judges).items()
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


def _head(metric: Metric, primary: bool, family: Sequence[Entry]) -> Record:
    benchmark, name = metric
    return {
        "benchmark": benchmark,
        "metric": name,
        "primary": primary,
        "lower_is_better": lower(metric, family),
    }


def lower(metric: Metric, family: Sequence[Entry]) -> bool:
    """Whether a smaller value is the better one: as the comparison says, else by the name."""
    said = next((each["lower_is_better"] for each in family if "lower_is_better" in each), None)
    return lower_is_better(metric[1]) if said is None else bool(said)


def _primary_first(entry: Entry) -> bool:
    return not entry["primary"]


def _is_primary(comparison: Entry, metric: Metric) -> bool:
    """Whether this figure decides."""
    return metric == deciding(comparison)
