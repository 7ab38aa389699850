"""Small figures as inline SVG: pure functions from numbers to markup.

Drawn by hand because the page must open at once: plotly.js alone weighs more than 4 MB, all figures
of a page here about 100 KB. Every value is in a `<title>`, so that a browser shows it on hover even
without scripts (the page's script turns titles into quicker tooltips). Colours are CSS classes
(`s0` … `s7` by arm, `pool`), so that the page's light and dark themes decide them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from markupsafe import Markup

from recipes.report.drawing.marks import (
    Scale,
    circle,
    figure,
    finite,
    group,
    hit,
    line,
    nothing,
    number,
    padded,
    path,
    percent,
    rect,
    text,
    told,
    x_axis,
    y_axis,
)

COLOURS = 8
"""Arms beyond the eighth begin again with the first colour; names are always printed beside."""
DASHES = 4
"""Patterns of a line; the seeds of one arm share its colour and differ in these."""

WIDTH = 360
CURVE_WIDTH = 760
STRIP = 160
ROW = 26
NAME_CHARACTERS = 16
LABEL_CHARACTERS = 20
CURVE_POINTS = 240
"""A longer curve is drawn by every k-th point and its last one."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Interval:
    """One estimate: a point and its interval (None where there is none), all on the figure's own
    scale."""

    name: str
    css: str
    value: float | None
    lower: float | None = None
    upper: float | None = None
    seeds: Sequence[tuple[str, float]] = ()
    """What each training seed gave (its name, its score), drawn as small dots."""


@dataclass(frozen=True)
class Shares:
    """One series of a bar chart or histogram: counts by label or bin, in the order of the labels or
    bins."""

    name: str
    css: str
    counts: Sequence[int]

    def share(self, index: int) -> float:
        """This label's part of the series, 0 to 1 (0 for an empty series)."""
        total = sum(self.counts)
        return self.counts[index] / total if total else 0.0


@dataclass(frozen=True)
class Curve:
    """One line: (x, y) points in order of x; `dash` numbers the dash pattern; `rings` are (x, y) of
    what was measured beside it, the loss of data that were held out say."""

    name: str
    css: str
    points: Points
    dash: int = 0
    rings: Points = ()


def css_class(index: int) -> str:
    """The colour class of the arm at `index`."""
    return f"s{index % COLOURS}"


def intervals(rows: Sequence[Interval], label: str, reference: float | None = None) -> Markup:
    """Points with their intervals, one row an arm, on one scale; `reference` draws a dashed line
    (50 % of a win rate, say)."""
    ends = [end for row in rows for end in (row.value, row.lower, row.upper)]
    ends += [value for row in rows for _, value in row.seeds]
    known = [end for end in ends if finite(end)]
    if not known:
        return nothing("no value was measured")
    height = ROW * len(rows) + 30
    bottom = height - 22
    longest = max(len(row.name) for row in rows)
    left = 16 + 7 * min(NAME_CHARACTERS, longest)
    if reference is not None:
        known.append(reference)
    x = Scale(*padded(known), left, WIDTH - 20)
    drawn = [*x_axis(x, bottom)]
    if reference is not None:
        drawn.append(line("reference", x(reference), x(reference), 2, bottom))
    for index, row in enumerate(rows):
        drawn += _interval(row, x, ROW * index + 2)
    return figure(WIDTH, height, label, drawn)


def _interval(row: Interval, x: Scale, top: float) -> Iterator[Markup]:
    """One row of an interval plot: its name, its whiskers, its point."""
    y = top + ROW / 2
    yield text("name", x.start - 8, y + 4, "end", _short(row.name, NAME_CHARACTERS))
    if not finite(row.value):
        missing = Markup('<text class="name" x="{}" y="{}">not measured</text>')
        yield missing.format(x.start + 4, y + 4)
        return
    values = f"{row.name}: {number(row.value)}"
    if finite(row.lower) and finite(row.upper):
        low, high = x(row.lower), x(row.upper)
        whisker = line("whisker", low, high, y, y)
        for end in (low, high):
            whisker += line("whisker", end, end, y - 4, y + 4)
        yield group(row.css, whisker)
        values += f"\ninterval {number(row.lower)} to {number(row.upper)}"
    for seed, value in row.seeds:
        yield group(row.css, circle("seed", x(value), y + 7, 2.2))
        values += f"\nseed {seed}: {number(value)}"
    yield group(row.css, circle("point", x(row.value), y, 4.5))
    yield hit(0, top, WIDTH, ROW, values)


def strip(rows: Sequence[Interval], ends: tuple[float, float], label: str) -> Markup:
    """Every estimate as a dot on one line from `ends[0]` to `ends[1]`."""
    x = Scale(*padded(ends), 4, STRIP - 4)
    drawn = [line("grid", 4, STRIP - 4, 9, 9)]
    for row in rows:
        if finite(row.value):
            drawn.append(group(row.css, circle("point", x(row.value), 9, 4)))
    said = "\n".join(f"{row.name}: {number(row.value)}" for row in rows)
    drawn.append(hit(0, 0, STRIP, 18, said))
    return figure(STRIP, 18, label, drawn)


def bars(labels: Sequence[str], series: Sequence[Shares], label: str) -> Markup:
    """Horizontal bars: for each label one bar a series, its length the label's share of that
    series."""
    if not labels or not _counted(series):
        return nothing("no value was measured")
    thick = 9 if len(series) <= 3 else 7
    step = thick * len(series) + 8
    height = step * len(labels) + 26
    longest = max(map(len, labels))
    left = 16 + 6.4 * min(LABEL_CHARACTERS, longest)
    x = Scale(0.0, _highest(series), left, WIDTH - 20, percent=True)
    drawn = [*x_axis(x, height - 22)]
    for index, name in enumerate(labels):
        top = step * index + 4
        drawn.append(text("name", left - 8, top + step / 2, "end", _short(name, LABEL_CHARACTERS)))
        for place, one in enumerate(series):
            y = top + place * thick
            length = round(x(one.share(index)) - left, 2)
            drawn.append(rect(f"bar {one.css}", left, y, max(0.0, length), thick - 1))
        drawn.append(hit(0, top - 4, WIDTH, step, name + _values(series, index)))
    return figure(WIDTH, height, label, drawn)


def histogram(
    edges: Sequence[float],
    series: Sequence[Shares],
    label: str,
    open_ended: bool = False,
) -> Markup:
    """Share of rows by bin, the first series filled, the others as step lines; `edges` are one more
    than the counts.

    `open_ended`: the last bin also holds everything above its upper edge.
    """
    if not _counted(series):
        return nothing("no value was measured")
    height, top, bottom = 176, 8, 154
    x = Scale(edges[0], edges[-1], 44, WIDTH - 12)
    y = Scale(0.0, _highest(series), bottom, top, percent=True)
    drawn = [*x_axis(x, bottom), *y_axis(y, x)]
    bins = list(enumerate(pairwise(edges)))
    for place, one in enumerate(series):
        kind = "area" if place == 0 else "step"
        steps = "".join(f"V{y(one.share(index))}H{x(end)}" for index, (_, end) in bins)
        drawn.append(path(f"{kind} {one.css}", f"M{x(edges[0])},{bottom}{steps}V{bottom}"))
    for index, (start, end) in bins:
        beyond = open_ended and end == edges[-1]
        reach = "and more" if beyond else f"to {number(end)}"
        values = f"{number(start)} {reach}{_values(series, index)}"
        drawn.append(hit(x(start), top, x(end) - x(start), bottom - top, values))
    return figure(WIDTH, height, label, drawn)


def curves(runs: Sequence[Curve], label: str) -> Markup:
    """Lines over steps on common axes: the finite points of each run, at most about `CURVE_POINTS`
    of them."""
    runs = [replace(run, points=_thin(run.points)) for run in runs]
    points = [point for run in runs for point in (*run.points, *run.rings)]
    if not points:
        return nothing("no step was logged")
    height, top, bottom = 250, 8, 216
    steps, values = zip(*points, strict=True)
    first, last = min(steps), max(steps)
    x = Scale(first, max(last, first + 1), 48, CURVE_WIDTH - 16, count=8)
    y = Scale(*padded(values), bottom, top)
    drawn = [*x_axis(x, bottom), *y_axis(y, x), text("tick", x.end, height - 4, "end", "step")]
    for run in runs:
        drawn += _curve(run, x, y)
    drawn += _steps(runs, x, top, bottom)
    return figure(CURVE_WIDTH, height, label, drawn)


def _curve(run: Curve, x: Scale, y: Scale) -> Iterator[Markup]:
    """A run's line, with a dot at its end."""
    placed = [(x(step), y(value)) for step, value in run.points]
    through = "L".join(f"{across},{down}" for across, down in placed)
    yield path(f"curve {run.css} dash{run.dash % DASHES}", through and f"M{through}")
    for end in placed[-1:]:
        yield circle(f"point {run.css}", *end, 2.5)
    for step, value in run.rings:
        yield circle(f"ring {run.css}", x(step), y(value), 4.5)


def _steps(runs: Sequence[Curve], x: Scale, top: float, bottom: float) -> Iterator[Markup]:
    """For the pointer: each step's values of all runs, over the width that is nearest to it."""
    values: dict[float, str] = {}
    for run in runs:
        for step, value in run.points:
            values.setdefault(step, f"step {number(step)}")
            values[step] += f"\n{run.name}: {number(value, 4)}"
    steps = sorted(values)
    middles = [(x(one) + x(two)) / 2 for one, two in pairwise(steps)]
    edges = pairwise([x.start, *middles, x.end])
    for step, (start, end) in zip(steps, edges, strict=True):
        yield hit(round(start, 2), top, round(end - start, 2), bottom - top, values[step])


def share_bar(parts: Sequence[tuple[str, str, int]], total: int, label: str) -> Markup:
    """One thin bar of `total` rows: segments (name, class, rows) from the left, the rest empty."""
    drawn, start = Markup(), 0.0
    for name, css, rows in parts:
        width = round(rows / total * 100, 3) if total else 0.0
        drawn += told(css, round(start, 3), 0, width, 10, f"{name}: {rows:,}")
        start += width
    return Markup(
        '<svg class="share" viewBox="0 0 100 10" preserveAspectRatio="none" role="img"'
        ' aria-label="{}">{}</svg>'
    ).format(label, drawn)


def _counted(series: Sequence[Shares]) -> bool:
    """Whether some series counted anything."""
    return any(sum(one.counts) for one in series)


def _highest(series: Sequence[Shares]) -> float:
    """The largest share of all."""
    return max(one.share(index) for one in series for index in range(len(one.counts)))


def _values(series: Sequence[Shares], index: int) -> str:
    """A line for each series: its share and its count of one label or bin."""
    values = ""
    for one in series:
        values += f"\n{one.name}: {percent(one.share(index))} ({one.counts[index]:,})"
    return values


def _thin(points: Points) -> Points:
    kept = [point for point in points if math.isfinite(point[1])]
    if len(kept) <= CURVE_POINTS:
        return kept
    every = math.ceil(len(kept) / CURVE_POINTS)
    return [*kept[:-1:every], kept[-1]]


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
