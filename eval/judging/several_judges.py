"""Several judges on one benchmark: their judgments in one table, one preference an item, and how
far they agree.

Each judge asks and is cached as if it were alone; nothing here asks anybody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import polars as pl

from core.columns import OK
from core.errors import UserError
from core.files import read_json, write_atomic
from core.store import Counts
from eval.judging.pairwise import judging
from eval.protocols import JudgeConfig

VERSION = 1


def names(judges: Sequence[JudgeConfig]) -> list[str]:
    """A short name for each judge: the last part of its model's name, numbered where two are
    alike."""
    short: list[str] = []
    for judge in judges:
        name = Path(judge.model).name
        taken = sum(name in (other, other.rpartition("~")[0]) for other in short)
        short.append(f"{name}~{taken + 1}" if taken else name)
    return short


def combine(inputs: Mapping[str, Path], out: Path) -> Counts:
    """Put the judgments folders (eval.judging.pairwise) of several judges, by name, together:
    `out`/judgments.parquet with a column `judge` more, `out`/protocol.json with `judges`.

    Counts: rows, judged, unjudged (games of all judges), what `pairwise.judging` has,
    `unjudged_by_judge`, `partly_judged` (items that some judges judged and others not), `agreement`
    (share of pairs of judges and items, judged by both, with the same winner or both without one)
    and `agreement_pairs` (how many those are). Raises UserError for a folder without judgments.
    """
    games = pl.concat([_judgments(judge, folder) for judge, folder in inputs.items()])
    out.mkdir(parents=True, exist_ok=True)
    games.write_parquet(out / "judgments.parquet")
    protocols = {judge: read_json(folder / "protocol.json") for judge, folder in inputs.items()}
    shared = next(iter(protocols.values()))
    write_atomic(out / "protocol.json", json.dumps(shared | {"judges": protocols}, indent=2))
    left = games.filter(pl.col("status") != OK)
    share, pairs = agreement(games)
    return {
        "rows": games.height,
        "judged": games.height - left.height,
        "unjudged": left.height,
        "unjudged_by_judge": dict(left.group_by("judge", maintain_order=True).len().iter_rows()),
        **judging(games),
        "partly_judged": by_item(games)["partly"].sum(),
        "agreement": share,
        "agreement_pairs": pairs,
    }


def _judgments(judge: str, folder: Path) -> pl.DataFrame:
    path = folder / "judgments.parquet"
    try:
        return pl.read_parquet(path, glob=False).with_columns(judge=pl.lit(judge))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read ({error}); run that judge first.") from error


def by_item(games: pl.DataFrame) -> pl.DataFrame:
    """One row an item, in order: item, preference (null when unjudged), reason, partly (some judges
    gave none), judges and judge_variance (how many judged it and what one of them varies by around
    their mean; null below two), model_characters, baseline_characters.

    A judge's preference is the mean over its games, all of which must be judged; the item's is the
    mean over the judges that have one. Also for the judgments of a single judge, which have no
    column `judge`.
    """
    each = _each(games)
    items = each.group_by("item", maintain_order=True).agg(
        pl.col("preference").mean(),
        pl.col("reason").filter(pl.col("preference").is_null()).first(),
        pl.col("preference").is_null().sum().alias("left"),
        pl.len().alias("judges"),
        pl.col("preference").var().alias("judge_variance"),
        pl.col("model_characters", "baseline_characters").first(),
    )
    partly = (pl.col("left") > 0) & (pl.col("left") < pl.col("judges"))
    said = pl.format(
        "{} of {} judges left a game unjudged ({})",
        "left",
        "judges",
        pl.col("reason").fill_null("no reason"),
    )
    judges = (pl.col("judges") - pl.col("left")).cast(pl.Int64)
    return items.with_columns(
        partly=partly,
        reason=pl.when(partly).then(said).otherwise("reason"),
        judges=pl.when(pl.col("judge_variance").is_not_null()).then(judges),
    ).drop("left")


def agreement(games: pl.DataFrame) -> tuple[float | None, int]:
    """(share, n): of all pairs of judges and items that both judged, the share with the same
    winner; identical answers are left out."""
    each = (
        _each(games.filter(pl.col("judgment").is_not_null()))
        .drop_nulls("preference")
        .with_columns(side=(pl.col("preference") - 0.5).sign())
    )
    sides = each.group_by("item").agg("side")["side"].to_list()
    same = [one == other for alike in sides for one, other in combinations(alike, 2)]
    return (sum(same) / len(same) if same else None), len(same)


def _each(games: pl.DataFrame) -> pl.DataFrame:
    """One row an item and judge: the mean preference over its games, null unless all are judged."""
    keys = [name for name in ("item", "judge") if name in games.columns]
    each = games.group_by(keys, maintain_order=True).agg(
        pl.col("preference").mean(),
        pl.col("preference").is_null().any().alias("missing"),
        pl.col("reason").drop_nulls().first(),
        pl.col("model_characters", "baseline_characters").first(),
    )
    return each.with_columns(preference=pl.when("missing").then(None).otherwise("preference")).drop(
        "missing"
    )
