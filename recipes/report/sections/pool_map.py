"""A map of the pool: its instructions in two dimensions, and where each arm chose.

The two principal components of the instructions' embeddings, where the store holds those (rows
whose near neighbours were looked for, arms that choose by likeness); else of the words that the
instructions are made of. Either way a small part of what differs between rows, which the page says
as a share of the variance.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recipes.report import sources
from recipes.report.drawing.scatter import Cloud, frame, panel
from recipes.report.sources import Colours, Inputs, Record

ROWS = 3_000
"""Rows of the pool on the map, a fixed sample; of each arm those among them, or as many of its
own where too few are."""
FEW = 300
FEATURES = 512
"""Places that words are hashed to."""
WORD = re.compile(r"\w+")

Stored = Callable[[Sequence[str]], NDArray[np.float32] | None]
"""Texts -> their unit vectors as the store holds them, [n, d]; None where it lacks one."""


@dataclass(frozen=True)
class Projection:
    """Rows in two dimensions: `places` (n, 2) in the order of `ids`, what share of the variance the
    two hold, and what they are of."""

    ids: list[str]
    places: NDArray[np.float64]
    explained: float
    of: str


def pool_map(inputs: Inputs, colours: Colours, stored: Stored | None) -> Record:
    """`panels`: one an arm that chose from the pool, its rows over the pool's, with how many rows
    of it are drawn; `sentence`: what the map is of. {} where there is no pool or no arm chose from
    it."""
    path = inputs["measure"] / "pool.parquet" if "measure" in inputs else None
    if path is None or not path.exists():
        return {}
    rows, chosen = sample(path, _chosen(inputs))
    if not chosen or len(rows) < 3:
        return {}
    projection = project(rows["id"].to_list(), rows["instruction"].to_list(), stored)
    pool = rows["of_pool"].to_numpy()
    everyone = Cloud("pool", projection.places[pool])
    scales = frame([Cloud("", projection.places)])
    panels = []
    for arm, ids in chosen.items():
        inside = np.array([name in ids for name in projection.ids])
        own = Cloud(colours[arm], projection.places[inside], radius=1.9)
        label = f"{arm}: {int(inside.sum())} of the rows that it chose, over the pool"
        drawn = panel([everyone, own], scales, label)
        panels.append(
            {"arm": arm, "css": colours[arm], "rows": own.points.shape[0], "figure": drawn}
        )
    sentence = (
        f"{int(pool.sum()):,} rows of the pool in grey, and those that each arm chose among them "
        f"(or a sample of its own): the two principal components of {projection.of}, "
        f"{100 * projection.explained:.0f} % of the variance, so that what is near on the map need "
        "not be alike."
    )
    return {"panels": panels, "sentence": sentence}


def _chosen(inputs: Inputs) -> dict[str, pl.DataFrame]:
    """The ids [id] that each arm chose; of an arm with a selection a seed, its first."""
    chosen: dict[str, pl.DataFrame] = {}
    for run, folder in sources.runs(inputs, "select").items():
        table = sources.read_table(folder / "selection.parquet", ["id"])
        if table is not None and run.arm not in chosen:
            chosen[run.arm] = table
    return chosen


def sample(
    path: Path, chosen: Mapping[str, pl.DataFrame]
) -> tuple[pl.DataFrame, dict[str, set[str]]]:
    """The rows on the map, [id, instruction, of_pool], and which of them each arm chose (arms
    without a row in the pool are left out).

    They are a fixed sample of the pool, and of each arm that has fewer than FEW rows in it a fixed
    sample of its own. Only the texts of these rows are read.
    """
    lazy = pl.scan_parquet(path, glob=False)
    ids = lazy.select("id").collect()
    order = np.argsort([place(name) for name in ids["id"]], kind="stable")
    ranked = ids[order]
    of_pool = set(ranked["id"].head(ROWS))
    wanted, found = set(of_pool), {}
    for arm, names in chosen.items():
        own = ranked.join(names, on="id", how="semi", maintain_order="left")["id"]
        among = {name for name in own if name in of_pool}
        if len(among) < FEW:
            among |= set(own.head(FEW))
        if among:
            wanted |= among
            found[arm] = among
    rows = lazy.filter(pl.col("id").is_in(list(wanted))).select("id", "instruction").collect()
    rows = rows.filter(pl.col("instruction").is_not_null())
    return rows.with_columns(of_pool=pl.col("id").is_in(list(of_pool))), found


def place(name: str) -> int:
    """Where an id stands in the order by which fixed samples are taken."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def project(ids: list[str], texts: list[str], stored: Stored | None) -> Projection:
    """Rows by the two principal components of their vectors. Signs are fixed so that the same rows
    give the same map."""
    vectors: NDArray[Any] | None = stored(texts) if stored is not None else None
    of = "the instructions' embeddings"
    if vectors is None:
        vectors, of = words(texts), "the words of the instructions (no embeddings are stored)"
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    places = centred @ axes[:, :-3:-1]
    total = float(variances.sum())
    share = float(variances[:-3:-1].sum()) / total if total > 0 else 0.0
    heaviest = np.abs(places).argmax(axis=0)
    signs = np.sign(places[heaviest, [0, 1]])
    return Projection(ids, places * np.where(signs == 0, 1, signs), share, of)


def words(texts: Sequence[str]) -> NDArray[np.float64]:
    """Unit vectors (n, FEATURES) of texts by their words, each weighted by how rare it is: words
    are hashed to places and signs (Weinberger et al. 2009), so that no vocabulary is kept."""
    held = [Counter(WORD.findall(text.lower())) for text in texts]
    rows = Counter(word for counts in held for word in counts)
    found = np.zeros((len(texts), FEATURES))
    for row, counts in enumerate(held):
        for word, count in counts.items():
            hashed = zlib.crc32(word.encode())
            weight = (1 + math.log(count)) * math.log((1 + len(texts)) / rows[word])
            found[row, (hashed >> 1) % FEATURES] += weight if hashed & 1 else -weight
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    unit: NDArray[np.float64] = found / np.where(lengths > 0, lengths, 1)
    return unit
