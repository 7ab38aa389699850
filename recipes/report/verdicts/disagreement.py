"""Prompts on which the arms lie furthest apart, by the figure that decides."""

from __future__ import annotations

import polars as pl

from recipes.report.drawing.figures import Interval, strip
from recipes.report.sources import Colours, Record
from recipes.report.verdicts import controls
from recipes.report.verdicts.outcome import Entry, deciding

MOST = 10


def prompts(comparison: Entry, table: pl.DataFrame, colours: Colours) -> Record:
    """`benchmark`: the one that decides; `rows`: its items with the largest distance between two
    arms, the largest first: item, distance, what the arms scored (`values`, the highest first) and
    a `figure`; `ties`: how many more lie as far apart as the last of them; `of`: among how many
    items; `means`: whether a value is a mean over seeds. Only items that every compared arm has a
    value of. Controls do not count in the distance: that wrong answers lie far from right ones
    says nothing of the arms.

    `table`: the items of the comparison (`seeds.ITEMS`).
    """
    family = deciding(comparison)
    if family is None:
        return {"rows": [], "of": 0}
    own = table.filter((pl.col("benchmark") == family[0]) & (pl.col("metric") == family[1]))
    by_arm = own.group_by("item", "arm").agg(pl.col("value").mean())
    in_question = by_arm.filter(~pl.col("arm").is_in([*controls.arms(comparison)]))
    arms = in_question["arm"].n_unique()
    value = pl.col("value")
    apart = (
        in_question.group_by("item")
        .agg((value.max() - value.min()).alias("distance"), pl.len().alias("arms"))
        .filter(pl.col("arms") == arms)
        .sort("distance", "item", descending=[True, False])
    )
    if arms < 2 or apart.is_empty():
        return {"rows": [], "of": 0}
    ends = (float(own["value"].min()), float(own["value"].max()))  # type: ignore[arg-type]
    rows = []
    for item, distance, _ in apart.filter(pl.col("distance") > 0).head(MOST).iter_rows():
        values = by_arm.filter(pl.col("item") == item).sort(
            "value", "arm", descending=[True, False]
        )
        known = dict(values.select("arm", "value").iter_rows())
        points = [Interval(arm, css, known[arm]) for arm, css in colours.items() if arm in known]
        figure = strip(points, ends, f"{item}: each arm's value")
        shown = [(arm, colours.get(arm, ""), value) for arm, value in known.items()]
        rows.append({"item": item, "distance": distance, "values": shown, "figure": figure})
    last = rows[-1]["distance"] if rows else 0.0
    ties = apart.filter((pl.col("distance") == last) & (pl.col("distance") > 0)).height
    ties -= sum(row["distance"] == last for row in rows)
    means = own["seed"].n_unique() > 1
    of = {"benchmark": family[0], "of": apart.height}
    return {**of, "rows": rows, "means": means, "ties": ties}
