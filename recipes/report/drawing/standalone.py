"""A figure of the page as a file of its own: SVG that any program draws, with every colour written
out in place of the page's style sheet, on white."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from markupsafe import Markup

STYLE = Path(__file__).parents[1] / "templates" / "style.css.jinja"
UNHELD = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold."""
Element = ElementTree.Element
Paint = Mapping[str, str]
"""Presentation attributes; "current" is the colour of the mark's arm, a name one of the page's."""

TEXT: Paint = {"fill": "quiet", "font-size": "11.5", "font-family": "sans-serif"}
PAINTS: Mapping[str, Paint] = {
    "tick": TEXT,
    "name": {**TEXT, "fill": "ink", "font-size": "12"},
    "grid": {"stroke": "line"},
    "reference": {"stroke": "quiet", "stroke-dasharray": "4 3"},
    "bar": {"fill": "current"},
    "point": {"fill": "current"},
    "seed": {"fill": "current", "fill-opacity": "0.55"},
    "area": {"fill": "current", "fill-opacity": "0.55"},
    "step": {"fill": "none", "stroke": "current", "stroke-width": "1.8"},
    "whisker": {"stroke": "current", "stroke-width": "2"},
    "curve": {"fill": "none", "stroke": "current", "stroke-width": "1.8"},
    "cloud": {
        "fill": "none",
        "stroke": "current",
        "stroke-width": "3.2",
        "stroke-linecap": "round",
        "stroke-opacity": "0.75",
    },
    "fine": {"stroke-width": "1.8", "stroke-opacity": "0.6"},
    "dash1": {"stroke-dasharray": "7 3"},
    "dash2": {"stroke-dasharray": "2 3"},
    "dash3": {"stroke-dasharray": "9 3 2 3"},
}
"""How each class is drawn, as the page's style sheet has it."""


def colours() -> dict[str, str]:
    """The colours of the page's light theme by name, from its style sheet."""
    light = STYLE.read_text(encoding="utf-8").partition("@media")[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))


def svg(figure: Markup, legend: Sequence[tuple[str, str]] = ()) -> Element | None:
    """The figure with its colours written out, and below it a legend of (name, class); None for
    what stands in place of a figure without values. What only answers the page's pointer is left
    out."""
    text = str(figure)
    if not text.startswith("<svg"):
        return None
    # What XML 1.0 cannot hold may stand in a name that somebody else chose.
    root = ElementTree.fromstring(UNHELD.sub("\ufffd", text))
    named = colours()
    _add_legend(root, legend)
    _paint(root, named, "")
    root.set("xmlns", "http://www.w3.org/2000/svg")
    width, height = root.get("width", "0"), root.get("height", "0")
    paper = {"x": "0", "y": "0", "width": width, "height": height, "fill": "#ffffff"}
    root.insert(0, Element("rect", paper))
    return root


def _add_legend(root: Element, legend: Sequence[tuple[str, str]]) -> None:
    """Rows of coloured squares with their names, as many a row as the figure's width has."""
    width, height = (float(root.get(name, "0")) for name in ("width", "height"))
    x, y = 12.0, height + 6
    for name, css in legend:
        needed = 24 + 7 * len(name)
        if x > 12 and x + needed > width:
            x, y = 12.0, y + 18
        square = {"class": f"bar {css}", "x": f"{x:g}", "y": f"{y:g}"}
        root.append(Element("rect", {**square, "width": "10", "height": "10"}))
        said = Element("text", {"class": "name", "x": f"{x + 15:g}", "y": f"{y + 9:g}"})
        said.text = UNHELD.sub("\ufffd", name)
        root.append(said)
        x += needed
    if legend:
        root.set("height", f"{y + 18:g}")
        root.set("viewBox", f"0 0 {width:g} {y + 18:g}")


def text_of(root: Element) -> str:
    """The file's content."""
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _paint(element: Element, named: Mapping[str, str], current: str) -> None:
    """Write attributes in place of classes, below `element`; `current` is the colour around it."""
    for child in list(element):
        classes = child.attrib.pop("class", "").split()
        if "hit" in classes:
            element.remove(child)
            continue
        own = next((named[name] for name in classes if name in named), current)
        for name, value in _attributes(classes):
            child.set(name, own if value == "current" else named.get(value, value))
        _paint(child, named, own)
    element.attrib.pop("class", None)


def _attributes(classes: list[str]) -> Iterator[tuple[str, str]]:
    for name in classes:
        yield from PAINTS.get(name, {}).items()
