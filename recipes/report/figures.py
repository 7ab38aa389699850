"""Small figures as inline SVG: pure functions from numbers to markup.

Drawn by hand because the page must open at once: plotly.js alone weighs more than 4 MB, all figures
of a page here about 100 KB. Every value is in a `<title>`, so that a browser shows it on hover even
without scripts (the page's script turns titles into quicker tooltips). Colours are CSS classes
(`s0` … `s7` by arm, `pool`), so that the page's light and dark themes decide them. All text goes
through `Markup.format`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

COLOURS = 8
"""Arms beyond the eighth begin again with the first colour; names are always printed beside."""

WIDTH = 360
ROW = 26
LABEL_CHARACTERS = 20

_Scale = Callable[[float], float]


@dataclass(frozen=True)
class Interval:
    """One estimate: a point and its interval (None where there is none), all on the figure's own
    scale."""

    name: str
    css: str
    value: float | None
    lower: float | None = None
    upper: float | None = None


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
    """One line: (x, y) points in order of x; `dash` numbers the dash pattern (seeds of one arm
    share a colour)."""

    name: str
    css: str
    points: Sequence[tuple[float, float]]
    dash: int = 0


def css_class(index: int) -> str:
    """The colour class of the arm at `index`."""
    return f"s{index % COLOURS}"


def number(value: object, digits: int = 3) -> str:
    """A figure for people: integers with thousands separators, others to `digits` significant
    digits; what is no finite number as a dash."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits + 1) or abs(value) < 1e-4:
        return f"{value:,.0f}" if abs(value) >= 1 else f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) inside [low, high], at most about
    `count` + 2 of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_texts(values: Sequence[float], percent: bool = False) -> list[str]:
    """The ticks as text, all with the decimals that their distance needs."""
    scaled = [v * 100 if percent else v for v in values]
    step = abs(scaled[1] - scaled[0]) if len(scaled) > 1 else abs(scaled[0]) if scaled else 0.0
    _, _, fraction = f"{step:.6f}".rstrip("0").partition(".")
    return [f"{v:,.{len(fraction)}f}".replace("-", "−") + (" %" if percent else "") for v in scaled]


def intervals(rows: Sequence[Interval], label: str, reference: float | None = None) -> Markup:
    """Points with their intervals, one row an arm, on one scale; `reference` draws a dashed line
    (50 % of a win rate, say)."""
    known = [
        v for r in rows for v in (r.value, r.lower, r.upper) if v is not None and math.isfinite(v)
    ]
    if not known:
        return Markup('<p class="none">Nothing to draw: no value was measured.</p>')
    low, high = _padded(min(known), max(known), reference)
    left, right, height = (
        16 + 7 * min(14, max(len(r.name) for r in rows)),
        WIDTH - 20,
        ROW * len(rows) + 30,
    )
    bottom = height - 22

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (right - left), 2)

    parts = [_axis_x(low, high, x, bottom)]
    if reference is not None:
        parts.append(
            Markup('<line class="reference" x1="{0}" x2="{0}" y1="2" y2="{1}"/>').format(
                x(reference), bottom
            )
        )
    for index, row in enumerate(rows):
        y = ROW * index + ROW / 2 + 2
        parts.append(
            Markup('<text class="name" x="{}" y="{}" text-anchor="end">{}</text>').format(
                left - 8, y + 4, _short(row.name, 14)
            )
        )
        if row.value is None or not math.isfinite(row.value):
            parts.append(
                Markup('<text class="name" x="{}" y="{}">not measured</text>').format(
                    left + 4, y + 4
                )
            )
            continue
        text = f"{row.name}: {number(row.value)}"
        if (
            row.lower is not None
            and row.upper is not None
            and math.isfinite(row.lower)
            and math.isfinite(row.upper)
        ):
            text += f"\ninterval {number(row.lower)} to {number(row.upper)}"
            parts.append(
                Markup(
                    '<g class="{0}"><line class="whisker" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/>{4}</g>'
                ).format(
                    row.css, x(row.lower), x(row.upper), y, _caps(x(row.lower), x(row.upper), y)
                )
            )
        parts.append(
            Markup('<g class="{}"><circle class="point" cx="{}" cy="{}" r="4.5"/></g>').format(
                row.css, x(row.value), y
            )
        )
        parts.append(_hit(0, ROW * index + 2, WIDTH, ROW, text))
    return _svg(height, label, parts)


def bars(labels: Sequence[str], series: Sequence[Shares], label: str) -> Markup:
    """Horizontal bars: for each label one bar a series, its length the label's share of that
    series."""
    if not labels or not any(sum(s.counts) for s in series):
        return Markup('<p class="none">Nothing to draw: no value was measured.</p>')
    thick = 9 if len(series) <= 3 else 7
    group = thick * len(series) + 8
    height = group * len(labels) + 26
    bottom = height - 22
    high = max(s.share(i) for s in series for i in range(len(labels)))
    left, right = 16 + 6.4 * min(LABEL_CHARACTERS, max(len(name) for name in labels)), WIDTH - 20

    def x(value: float) -> float:
        return round(left + value / high * (right - left), 2)

    parts = [_axis_x(0.0, high, x, bottom, percent=True)]
    for index, name in enumerate(labels):
        top = group * index + 4
        parts.append(
            Markup('<text class="name" x="{}" y="{}" text-anchor="end">{}</text>').format(
                left - 8, top + group / 2, _short(name, LABEL_CHARACTERS)
            )
        )
        for place, one in enumerate(series):
            share = one.share(index)
            parts.append(
                Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"/>').format(
                    one.css,
                    left,
                    top + place * thick,
                    max(0.0, round(x(share) - left, 2)),
                    thick - 1,
                )
            )
        parts.append(
            _hit(
                0,
                top - 4,
                WIDTH,
                group,
                name
                + "".join(
                    f"\n{s.name}: {_percent(s.share(index))} ({s.counts[index]:,})" for s in series
                ),
            )
        )
    return _svg(height, label, parts)


def histogram(
    edges: Sequence[float], series: Sequence[Shares], label: str, open_ended: bool = False
) -> Markup:
    """Share of rows by bin, the first series filled, the others as step lines; `edges` are one more
    than the counts.

    `open_ended`: the last bin also holds everything above its upper edge.
    """
    bins = len(edges) - 1
    if bins < 1 or not any(sum(s.counts) for s in series):
        return Markup('<p class="none">Nothing to draw: no value was measured.</p>')
    height, left, right = 176, 44, WIDTH - 12
    bottom, top = height - 22, 8
    low, span = edges[0], edges[-1] - edges[0]
    high = max(s.share(i) for s in series for i in range(bins))

    def x(value: float) -> float:
        return round(left + (value - low) / span * (right - left), 2)

    def y(share: float) -> float:
        return round(bottom - share / high * (bottom - top), 2)

    parts = [_axis_x(low, edges[-1], x, bottom), _axis_y(0.0, high, y, left, right, percent=True)]
    for place, one in enumerate(series):
        path = f"M{x(edges[0])},{bottom}"
        for i in range(bins):
            path += f"V{y(one.share(i))}H{x(edges[i + 1])}"
        path += f"V{bottom}"
        parts.append(
            Markup('<path class="{} {}" d="{}"/>').format(
                "area" if place == 0 else "step", one.css, path
            )
        )
    for i in range(bins):
        where = (
            f"{number(edges[i])} and more"
            if open_ended and i == bins - 1
            else f"{number(edges[i])} to {number(edges[i + 1])}"
        )
        text = where + "".join(
            f"\n{s.name}: {_percent(s.share(i))} ({s.counts[i]:,})" for s in series
        )
        parts.append(_hit(x(edges[i]), top, x(edges[i + 1]) - x(edges[i]), bottom - top, text))
    return _svg(height, label, parts)


def curves(
    runs: Sequence[Curve], label: str, x_name: str = "step", width: int = 760, points: int = 240
) -> Markup:
    """Lines on common axes; a run with more than `points` points is drawn by every k-th point and
    its last one."""
    runs = [Curve(r.name, r.css, _thin(r.points, points), r.dash) for r in runs]
    flat = [p for r in runs for p in r.points]
    if not flat:
        return Markup('<p class="none">Nothing to draw: no step was logged.</p>')
    height, left, right = 250, 48, width - 16
    bottom, top = height - 34, 8
    x_low, x_high = min(p[0] for p in flat), max(p[0] for p in flat)
    x_high = x_high if x_high > x_low else x_low + 1
    y_low, y_high = _padded(min(p[1] for p in flat), max(p[1] for p in flat), None)

    def x(value: float) -> float:
        return round(left + (value - x_low) / (x_high - x_low) * (right - left), 2)

    def y(value: float) -> float:
        return round(bottom - (value - y_low) / (y_high - y_low) * (bottom - top), 2)

    parts = [_axis_x(x_low, x_high, x, bottom, count=8), _axis_y(y_low, y_high, y, left, right)]
    parts.append(
        Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
            right, height - 4, x_name
        )
    )
    for run in runs:
        path = "M" + "L".join(f"{x(a)},{y(b)}" for a, b in run.points) if run.points else ""
        parts.append(
            Markup('<path class="curve {} dash{}" d="{}"/>').format(run.css, run.dash % 4, path)
        )
        if run.points:
            parts.append(
                Markup('<circle class="point {}" cx="{}" cy="{}" r="2.5"/>').format(
                    run.css, x(run.points[-1][0]), y(run.points[-1][1])
                )
            )
    at: dict[float, list[str]] = {}
    for run in runs:
        for a, b in run.points:
            at.setdefault(a, []).append(f"\n{run.name}: {number(b, 4)}")
    steps = sorted(at)
    for i, step in enumerate(steps):
        start = left if i == 0 else (x(steps[i - 1]) + x(step)) / 2
        end = right if i == len(steps) - 1 else (x(step) + x(steps[i + 1])) / 2
        parts.append(
            _hit(
                round(start, 2),
                top,
                round(end - start, 2),
                bottom - top,
                f"{x_name} {number(step)}" + "".join(at[step]),
            )
        )
    return _svg(height, label, parts, width)


def share_bar(parts: Sequence[tuple[str, str, int]], total: int, label: str) -> Markup:
    """One thin bar of `total` rows: segments (name, class, rows) from the left, the rest empty."""
    pieces, start = [], 0.0
    for name, css, rows in parts:
        width = round(rows / total * 100, 3) if total else 0.0
        pieces.append(
            Markup(
                '<rect class="{}" x="{}" y="0" width="{}" height="10"><title>{}: {:,}</title></rect>'
            ).format(css, round(start, 3), width, name, rows)
        )
        start += width
    return Markup(
        '<svg class="share" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(label, Markup("").join(pieces))


def _padded(low: float, high: float, reference: float | None) -> tuple[float, float]:
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
    pad = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return low - pad, high + pad


def _thin(points: Sequence[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    finite = [p for p in points if math.isfinite(p[1])]
    if len(finite) <= limit:
        return finite
    every = math.ceil(len(finite) / limit)
    kept = finite[::every]
    return kept if kept[-1] == finite[-1] else [*kept, finite[-1]]


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _hit(x: float, y: float, width: float, height: float, text: str) -> Markup:
    """An invisible rectangle that carries the figure's values for the pointer."""
    rect = Markup('<rect class="hit" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>')
    return rect.format(x, y, round(max(width, 0.5), 2), height, text)


def _caps(lower: float, upper: float, y: float) -> Markup:
    return Markup("").join(
        Markup('<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
            x, y - 4, y + 4
        )
        for x in (lower, upper)
    )


def _axis_x(
    low: float, high: float, x: _Scale, bottom: float, percent: bool = False, count: int = 4
) -> Markup:
    lines = []
    marks = ticks(low, high, count)
    for tick, text in zip(marks, tick_texts(marks, percent), strict=True):
        lines.append(
            Markup('<line class="grid" x1="{0}" x2="{0}" y1="2" y2="{1}"/>').format(x(tick), bottom)
        )
        lines.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                x(tick), bottom + 14, text
            )
        )
    return Markup("").join(lines)


def _axis_y(
    low: float, high: float, y: _Scale, left: float, right: float, percent: bool = False
) -> Markup:
    lines = []
    marks = ticks(low, high, 4)
    for tick, text in zip(marks, tick_texts(marks, percent), strict=True):
        lines.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                left, right, y(tick), y(tick)
            )
        )
        lines.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                left - 6, y(tick) + 4, text
            )
        )
    return Markup("").join(lines)


def _svg(height: float, label: str, parts: Sequence[Markup], width: int = WIDTH) -> Markup:
    return Markup(
        '<svg class="figure" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, width, height, label, Markup("").join(parts))
