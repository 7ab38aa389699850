"""The rows of each arm's training data that are most like a prompt: what the arm may have learnt
its answer from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from numpy.typing import NDArray

from recipes.report import sources
from recipes.report.sections.pool_map import Stored, place, words
from recipes.report.sources import Colours, Inputs, Record

EMBEDDED, READ = 50_000, 4_000
"""Rows of an arm that are looked through, a fixed sample: where the store holds embeddings of them
and of the prompts, and where only their words are compared."""
ROWS = 3
"""Rows of an arm that are shown for a prompt at most."""
CHARACTERS = 240
"""Of a row that the page shows."""
HELDOUT = "heldout.parquet"
"""The file of held-out conversations among a result's."""


def nearest(
    inputs: Inputs, prompts: Sequence[str], colours: Colours, stored: Stored | None
) -> Record:
    """`rows`: for each of the `prompts` a list of rows (arm, css, id, text, likeness: the cosine of
    the two): of each arm's selection those whose instructions are most like it; `sentence`: what
    was compared. {} where no arm has a selection. Of an arm with a selection a seed, its first."""
    found: list[list[Record]] = [[] for _ in prompts]
    said = set()
    seen = set[str]()
    for run, folder in sources.runs(inputs, "select").items():
        if run.arm in seen or not prompts:
            continue
        rows = instructions(folder / "selection.parquet", EMBEDDED)
        if rows is None or rows.is_empty():
            continue
        seen.add(run.arm)
        vectors, by = _vectors(rows["text"].to_list(), prompts, stored), "embeddings"
        if vectors is None:
            rows, by = rows.head(READ), "words"
            every = words([*rows["text"], *prompts])
            vectors = every[: len(rows)], every[len(rows) :]
        said.add(f"{by} of {len(rows):,} rows of {run.arm}")
        for at, best, likeness in _best(*vectors):
            name, text = rows.row(best)
            shown = {"arm": run.arm, "css": colours.get(run.arm, ""), "id": name}
            found[at].append({**shown, "text": text[:CHARACTERS], "likeness": likeness})
    if not said:
        return {}
    return {"rows": found, "sentence": f"Compared: the {', the '.join(sorted(said))}."}


def instructions(path: Path, most: int) -> pl.DataFrame | None:
    """[id, text] of at most so many rows of a selection, a fixed sample in a fixed order: each
    conversation's first message. None where there is no such file, or it holds no texts."""
    if not path.exists():
        return None
    lazy = pl.scan_parquet(path, glob=False)
    names = lazy.collect_schema().names()
    if "messages" not in names:
        return None
    ids = lazy.select("id").collect()["id"].to_list()
    kept = sorted(ids, key=place)[:most]
    content = pl.col("messages").list.first().struct.field("content")
    rows = lazy.filter(pl.col("id").is_in(kept)).select("id", content.alias("text")).collect()
    order = pl.DataFrame({"id": kept}, schema={"id": pl.String})
    return order.join(rows.drop_nulls().unique("id"), on="id", maintain_order="left")


def _vectors(
    texts: list[str], prompts: Sequence[str], stored: Stored | None
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """The stored vectors of rows and of prompts; None where one is missing."""
    if stored is None:
        return None
    of_prompts = stored(prompts)
    of_rows = stored(texts) if of_prompts is not None else None
    return None if of_rows is None or of_prompts is None else (of_rows, of_prompts)


def _best(rows: NDArray[Any], prompts: NDArray[Any]) -> Iterator[tuple[int, int, float]]:
    """(place of a prompt, place of one of the rows that are most like it, the cosine of the two),
    the most alike first; of those behind it only what is alike at all."""
    likeness = prompts @ rows.T
    for at, own in enumerate(likeness):
        for rank, best in enumerate((-own).argsort(kind="stable")[:ROWS]):
            if rank == 0 or own[best] > 0:
                yield at, int(best), float(own[best])


def first_messages(inputs: Inputs, ids: Collection[str]) -> dict[str, str]:
    """What the held-out conversations of these ids begin with."""
    found: dict[str, str] = {}
    for name, folder in inputs.items():
        path = folder / HELDOUT
        if name.startswith(sources.MADE) and path.is_file():
            content = pl.col("messages").list.first().struct.field("content")
            rows = pl.scan_parquet(path, glob=False).filter(pl.col("id").is_in([*ids]))
            found |= dict(rows.select("id", content).drop_nulls().collect().iter_rows())
    return found
