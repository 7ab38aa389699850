"""Scatter plots: points with their values for the pointer, and clouds of more points than that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from recipes.report.drawing.marks import (
    Scale,
    circle,
    figure,
    group,
    line,
    nothing,
    padded,
    path,
    text,
    told,
    x_axis,
    y_axis,
)

WIDTH, HEIGHT = 560, 300
PANEL = 220
"""Width and height of one cloud."""


@dataclass(frozen=True)
class Point:
    """One mark: `said` stands in its tooltip; a `large` one carries its `name` beside it, and a
    small one belongs to a large one of the same class (a seed to its arm)."""

    css: str
    x: float
    y: float
    said: str
    name: str = ""

    @property
    def large(self) -> bool:
        """Whether it carries a name."""
        return bool(self.name)


def scatter(
    points: Sequence[Point],
    label: str,
    axes: tuple[str, str],
    reference: float | None = None,
) -> Markup:
    """Points on two axes of these names; `reference` is a dashed line at that y."""
    if not points:
        return nothing("no value was measured")
    left, bottom = 52, HEIGHT - 38
    values = [point.y for point in points] + ([] if reference is None else [reference])
    x = Scale(*padded([point.x for point in points]), left, WIDTH - 90, count=6)
    y = Scale(*padded(values), bottom, 18)
    drawn = [*x_axis(x, bottom), *y_axis(y, x)]
    drawn.append(text("tick", x.end, HEIGHT - 6, "end", axes[0]))
    drawn.append(text("tick", 4, 11, "start", axes[1]))
    if reference is not None:
        drawn.append(line("reference", x.start, x.end, y(reference), y(reference)))
    for point in sorted(points, key=lambda point: point.large):
        drawn += _point(point, x, y)
    return figure(WIDTH, HEIGHT, label, drawn)


def _point(point: Point, x: Scale, y: Scale) -> Iterator[Markup]:
    """A mark, its name beside it, and a square of 16 units that answers the pointer."""
    across, down = x(point.x), y(point.y)
    yield group(point.css, circle("point" if point.large else "seed", across, down, _radius(point)))
    if point.large:
        yield text("name", round(across + 9, 2), round(down + 4, 2), "start", point.name)
    yield told("hit", round(across - 8, 2), round(down - 8, 2), 16, 16, point.said)


def _radius(point: Point) -> float:
    return 5.5 if point.large else 3


@dataclass(frozen=True)
class Cloud:
    """Points that are too many for a tooltip each: (n, 2), drawn in the order of the list."""

    css: str
    points: NDArray[np.float64]
    radius: float = 1.3


def frame(clouds: Sequence[Cloud]) -> tuple[Scale, Scale]:
    """Scales on which all of these clouds lie in one panel, the same for every panel."""
    every = np.concatenate([cloud.points for cloud in clouds])
    scales = []
    for axis, (start, end) in enumerate(((6.0, PANEL - 6.0), (PANEL - 6.0, 6.0))):
        low, high = np.quantile(every[:, axis], [0.002, 0.998])
        scales.append(Scale(*padded([float(low), float(high)]), start, end))
    return scales[0], scales[1]


def panel(clouds: Sequence[Cloud], scales: tuple[Scale, Scale], label: str) -> Markup:
    """Clouds on one panel without axes (the directions of a projection have no unit). What lies
    outside the scales is drawn at the edge."""
    drawn = []
    for cloud in clouds:
        places = []
        for column, scale in zip(cloud.points.T, scales, strict=True):
            within = np.clip(column, scale.low, scale.high)
            shares = (within - scale.low) / (scale.high - scale.low)
            places.append(np.rint(scale.start + shares * (scale.end - scale.start)).astype(int))
        # Points of one place look like one: each is drawn once.
        ends = sorted(set(zip(*(place.tolist() for place in places), strict=True)))
        dots = "".join(f"M{across},{down}h0" for across, down in ends)
        drawn.append(path(f"cloud {cloud.css}{' fine' if cloud.radius < 1.5 else ''}", dots))
    return figure(PANEL, PANEL, label, drawn)
