"""A figure as an image: the few marks that figures are made of, drawn by Pillow.

Nothing else is read of SVG than what recipes/report/drawing/marks.py writes: lines, rectangles,
circles, texts, and paths of M, L, H, V and h0 (a dot).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

SCALE = 2
"""Pixels of an image a unit of its figure."""
SMOOTH = 2
"""An image is drawn this many times larger, then made smaller, so that edges are smooth."""
FONTS = ("DejaVuSans.ttf", "Arial.ttf", "LiberationSans-Regular.ttf")
"""The first of them that this machine has writes the texts, else Pillow's own."""
COMMAND = re.compile(r"([MLHVh])([^MLHVh]*)")
Spot = tuple[float, float]


def png(root: Element, path: Path) -> None:
    """Write a figure (`recipes.report.drawing.standalone.svg`) as a PNG."""
    from PIL import Image, ImageDraw

    width, height = (float(root.get(name, "1")) for name in ("width", "height"))
    size = (round(width * SCALE), round(height * SCALE))
    image = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), "#ffffff")
    pen = _Pen(ImageDraw.Draw(image, "RGBA"), SCALE * SMOOTH)
    for element in root.iter():
        pen.draw(element)
    image.resize(size, Image.Resampling.LANCZOS).save(path, "PNG")


@dataclass
class _Pen:
    """Draws elements `scale` times as large as they say."""

    on: ImageDraw
    scale: int

    def draw(self, element: Element) -> None:
        kind = element.tag.rpartition("}")[2]
        if kind in ("line", "rect", "circle", "path", "text"):
            getattr(self, f"_{kind}")(element)

    def _line(self, element: Element) -> None:
        ends = [(self._at(element, f"x{end}"), self._at(element, f"y{end}")) for end in "12"]
        self._stroke(element, ends)

    def _rect(self, element: Element) -> None:
        x, y = self._at(element, "x"), self._at(element, "y")
        width, height = self._at(element, "width"), self._at(element, "height")
        fill = _colour(element, "fill")
        if fill is not None and width > 0 and height > 0:
            self.on.rectangle((x, y, x + width - 1, y + height - 1), fill=fill)

    def _circle(self, element: Element) -> None:
        x, y, r = (self._at(element, name) for name in ("cx", "cy", "r"))
        self.on.ellipse((x - r, y - r, x + r, y + r), fill=_colour(element, "fill"))

    def _path(self, element: Element) -> None:
        for spots in _walks(element.get("d", "")):
            placed = [(x * self.scale, y * self.scale) for x, y in spots]
            fill = _colour(element, "fill")
            if fill is not None and len(placed) > 2:
                self.on.polygon(placed, fill=fill)
            if len(placed) == 1 or (placed[0] == placed[-1] and len(placed) == 2):
                self._dot(element, placed[0])
            else:
                self._stroke(element, placed)

    def _dot(self, element: Element, spot: Spot) -> None:
        (x, y), r = spot, self._at(element, "stroke-width") / 2
        self.on.ellipse((x - r, y - r, x + r, y + r), fill=_colour(element, "stroke"))

    def _stroke(self, element: Element, spots: list[Spot]) -> None:
        colour = _colour(element, "stroke")
        if colour is None:
            return
        width = round(float(element.get("stroke-width", "1")) * self.scale)
        dashes = [float(one) * self.scale for one in element.get("stroke-dasharray", "").split()]
        for part in _dashed(spots, dashes) if dashes else [spots]:
            self.on.line(part, fill=colour, width=width, joint="curve")

    def _text(self, element: Element) -> None:
        anchor = {"middle": "ms", "end": "rs"}.get(element.get("text-anchor", ""), "ls")
        font = _font(float(element.get("font-size", "12")) * self.scale)
        spot = (self._at(element, "x"), self._at(element, "y"))
        self.on.text(
            spot, element.text or "", fill=_colour(element, "fill"), font=font, anchor=anchor
        )

    def _at(self, element: Element, name: str) -> float:
        return float(element.get(name, "1" if name == "stroke-width" else "0")) * self.scale


def _colour(element: Element, name: str) -> tuple[int, int, int, int] | None:
    """A colour with its opacity; None for none."""
    value = element.get(name, "none")
    if value == "none":
        return None
    red, green, blue = (int(value[k : k + 2], 16) for k in (1, 3, 5))
    return red, green, blue, round(255 * float(element.get(f"{name}-opacity", "1")))


def _walks(drawn: str) -> Iterator[list[Spot]]:
    """The lines of a path, each from where it begins."""
    spots: list[Spot] = []
    for command, rest in COMMAND.findall(drawn):
        values = [float(one) for one in re.findall(r"-?[\d.]+", rest)]
        if command == "M" and spots:
            yield spots
            spots = []
        if command in "ML":
            spots.append((values[0], values[1]))
        elif command == "H":
            spots.append((values[0], spots[-1][1]))
        elif command == "V":
            spots.append((spots[-1][0], values[0]))
    if spots:
        yield spots


def _dashed(spots: list[Spot], dashes: list[float]) -> Iterator[list[Spot]]:
    """The drawn parts of a line; the pattern goes on round its corners."""
    place, left = 0, dashes[0]
    for (x, y), (to_x, to_y) in pairwise(spots):
        length, done = hypot(to_x - x, to_y - y), 0.0
        while done < length:
            step = min(left, length - done)
            if place % 2 == 0:
                ends = [done / length, (done + step) / length]
                yield [(x + (to_x - x) * end, y + (to_y - y) * end) for end in ends]
            done, left = done + step, left - step
            if left <= 0:
                place = (place + 1) % len(dashes)
                left = dashes[place]


def _font(size: float) -> Any:
    """A font of this size in pixels."""
    from PIL import ImageFont

    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
