"""What the page's figures are drawn with: numbers for people, scales with their axes, and marks.

All text goes through `Markup.format`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from markupsafe import Markup

# -- numbers ---------------------------------------------------------------------------------------


def finite(value: object) -> TypeGuard[float]:
    """Whether it is a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def number(value: object, digits: int = 3) -> str:
    """A figure for people: integers with thousands separators, others to `digits` significant
    digits; what is no finite number as a dash."""
    if not finite(value):
        return "–"
    size = abs(value)
    if isinstance(value, int) or (size >= 1000 and value == int(value)):
        return f"{int(value):,}"
    if value == 0:
        return "0"
    if size >= 10 ** (digits + 1):
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return _minus(f"{value:,.{decimals}f}")


def percent(share: float) -> str:
    """A share, 0 to 1, for people."""
    return f"{share * 100:.1f} %"


def _minus(text: str) -> str:
    """The text with a minus sign as wide as its plus."""
    return text.replace("-", "−")


# -- scales ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Where a value lies on the page: `low` at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    percent: bool = False
    """Whether its ticks are written in percent."""
    count: int = 4
    """About how many ticks it has."""

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self) -> Iterable[tuple[float, str]]:
        """Place and text of each tick."""
        values = ticks(self.low, self.high, self.count)
        return zip(map(self, values), tick_texts(values, self.percent), strict=True)


def padded(values: Sequence[float]) -> tuple[float, float]:
    """Their range with a little room at both ends, also where all are equal."""
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) inside [low, high], at most about
    `count` + 2 of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    # The tolerances are for rounding: without them a range of exactly five distances gets coarser
    # ones, and a tick at an end is lost.
    steps = [multiple * magnitude for multiple in (1, 2, 2.5, 5, 10)]
    step = next(step for step in steps if step >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def tick_texts(values: Sequence[float], percent: bool = False) -> list[str]:
    """The ticks as text, all with the decimals that their distance needs."""
    scaled = [value * 100 for value in values] if percent else values
    distance = abs(scaled[1] - scaled[0]) if len(scaled) > 1 else abs(sum(scaled))
    _, _, fraction = f"{distance:.6f}".rstrip("0").partition(".")
    unit = " %" if percent else ""
    return [_minus(f"{value:,.{len(fraction)}f}") + unit for value in scaled]


def x_axis(x: Scale, bottom: float) -> Iterator[Markup]:
    """Vertical grid lines down to `bottom`, with their values below."""
    for at, value in x.ticks():
        yield line("grid", at, at, 2, bottom)
        yield text("tick", at, bottom + 14, "middle", value)


def y_axis(y: Scale, x: Scale) -> Iterator[Markup]:
    """Horizontal grid lines across `x`, with their values at its start."""
    for at, value in y.ticks():
        yield line("grid", x.start, x.end, at, at)
        yield text("tick", x.start - 6, at + 4, "end", value)


# -- marks: each takes its CSS class, its place, and what it says ----------------------------------

line = Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format
text = Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format
circle = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format
path = Markup('<path class="{}" d="{}"/>').format
group = Markup('<g class="{}">{}</g>').format
rect = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format
told = Markup(
    '<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>'
).format


def hit(x: float, y: float, width: float, height: float, values: str) -> Markup:
    """An invisible rectangle that carries the figure's values for the pointer."""
    return told("hit", x, y, round(max(width, 0.5), 2), height, values)


def figure(width: float, height: float, label: str, marks: Iterable[Markup]) -> Markup:
    """The marks as a figure; `label` is what a screen reader says of it."""
    return Markup(
        '<svg class="figure" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img"'
        ' aria-label="{2}">{3}</svg>'
    ).format(width, height, label, Markup().join(marks))


def nothing(why: str) -> Markup:
    """What stands in place of a figure without values."""
    return Markup('<p class="none">Nothing to draw: {}.</p>').format(why)
