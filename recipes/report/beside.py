"""What lies beside the page: its tables as CSV, JSON and Parquet, its figures as SVG and PNG."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
from markupsafe import Markup

from core.files import link, remove
from recipes.report.drawing import raster, standalone
from recipes.report.sources import Record

TABLES, FIGURES = "tables", "figures"
Drawn = tuple[Markup, Sequence[tuple[str, str]]]
"""A figure, and the legend (name, colour class) that it needs outside the page."""


def write(out: Path, tables: Mapping[str, pl.DataFrame], figures: Mapping[str, Drawn]) -> None:
    """`out`/tables/NAME.csv, .json and .parquet, and `out`/figures/NAME.svg and .png. Figures
    without values are left out.

    CSV has one line a row, and no cell that a spreadsheet would take for a formula.
    """
    for name, table in tables.items():
        (out / TABLES).mkdir(parents=True, exist_ok=True)
        path = out / TABLES / name
        texts = [column for column, kind in table.schema.items() if kind == pl.String]
        safe = table.with_columns(pl.col(texts).str.replace(r"^([=+\-@\t\r])", "'${1}"))
        safe.write_csv(path.with_suffix(".csv"))
        table.write_json(path.with_suffix(".json"))
        table.write_parquet(path.with_suffix(".parquet"))
    for name, (figure, legend) in figures.items():
        root = standalone.svg(figure, legend)
        if root is not None:
            (out / FIGURES).mkdir(parents=True, exist_ok=True)
            path = out / FIGURES / name
            path.with_name(f"{name}.svg").write_text(standalone.text_of(root), encoding="utf-8")
            raster.png(root, path.with_name(f"{name}.png"))


def figures(shown: Record) -> dict[str, Drawn]:
    """The page's figures by the names of their files."""
    named: dict[str, Drawn] = {}
    for name, drawn in _figures(shown):
        file = short = file_name(name)
        number = 2
        while file in named:
            file, number = f"{short}~{number}", number + 1
        named[file] = drawn
    return named


def file_name(name: str) -> str:
    """A figure's name as that of a file."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:100] or "figure"


def _figures(shown: Record) -> Iterator[tuple[str, Drawn]]:
    """Every figure and what it is of, in the page's order."""
    arms = [(arm["name"], arm["css"]) for arm in shown["arms"]]
    chosen = {funnel["arm"] for funnel in shown["funnels"]}
    trained = {run["css"] for run in shown["trainings"]}
    if shown["board"]:
        yield "leaderboard", (shown["board"]["figure"], ())
    for one in shown["controls"]:
        yield f"controls-{one['benchmark']}-{one['metric']}", (one["figure"], ())
    for row in shown["scores"]:
        yield f"score-{row['benchmark']}-{row['metric']}", (row["figure"], ())
    if shown["lengths"]:
        yield "lengths", (shown["lengths"]["figure"], ())
    for one in shown["map"].get("panels", []):
        legend = [("pool", "pool"), (one["arm"], one["css"])]
        yield f"map-{one['arm']}", (one["figure"], legend)
    for card in shown["cards"]:
        legend = [("pool", "pool"), *(arm for arm in arms if arm[0] in chosen)]
        yield f"tag-{card['name']}", (card["figure"], legend)
    if shown["curves"]:
        yield "loss", (shown["curves"], [arm for arm in arms if arm[1] in trained])


def copy(made: Path, folder: Path) -> None:
    """The tables and figures of a page that was made, as further names of the same files in
    `folder`; what an earlier page left there is gone."""
    for kind in (TABLES, FIGURES):
        own = {path.name: path for path in (made / kind).glob("*")}
        for path in (folder / kind).glob("*"):
            if path.name not in own:
                remove(path)
        for name, path in own.items():
            (folder / kind).mkdir(exist_ok=True)
            link(path, folder / kind / name)
