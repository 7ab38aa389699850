"""Arms that are positive controls: another arm's rows with a share of their answers moved to other
instructions. Every instruction and every answer is still there, in the same order of rows, so
nothing differs from that arm but which of them stand together.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from core.errors import UserError
from core.store import Counts, Result
from core.tracking import Log
from recipes.stages.session import Session, Stage
from recipes.stages.sets import beside, others
from recipes.stages.synthesis import FILE
from recipes.stages.tokens import rows_digest
from recipes.stages.walk import Arms, Selections
from synth.filters.orders import hash_rank

VERSION = 1
"""Part of the key of a shuffled selection; raised when the same rows would be moved otherwise."""
SEED = "shuffled"
FEWEST = 2
"""One answer has nowhere to go."""


def from_shuffled(session: Session, arms: Arms, selections: Selections) -> Selections:
    """A selection for every shuffled arm and every seed. `selections`: of all other arms."""
    found: Selections = {}
    for arm, config in arms.configs.items():
        if config.of is None or config.shuffled is None:
            continue
        by_seed = {}
        for seed, name in arms.selections(arm):
            source = selections[(config.of, seed)]
            by_seed[seed] = _selection(session, name, source, config.shuffled, config.of)
        first = by_seed[arms.seeds[0]]
        found |= {(arm, seed): by_seed.get(seed, first) for seed in arms.seeds}
    return found


def _selection(
    session: Session, name: str, source: Result | None, share: float, of: str
) -> Result | None:
    """The selection of a shuffled arm for one seed, and beside the recipe whose answer each row
    has."""

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        rows, origin = moved(pl.read_parquet(inputs["selection"] / FILE, glob=False), share)
        rows.write_parquet(out / FILE)
        origin.write_parquet(out / ORIGIN)
        return {"rows": len(rows), "moved": int(origin["moved"].sum())}

    stage = Stage(
        f"select/{name}",
        {"shuffled": share, "VERSION": VERSION},
        {"selection": source},
        make,
        content=lambda out: rows_digest(pl.read_parquet(out / FILE, glob=False)),
    )
    made = session.result(stage)
    if made is not None and not session.planning:
        others.link(session, name, made.path / FILE)
        known = pl.read_parquet(made.path / ORIGIN, glob=False).with_columns(of=pl.lit(of))
        beside.keep_rows(session, name, known)
    return made


ORIGIN = "origin.parquet"
"""[id, answer_of (the row whose first answer it has), moved (whether any answer is another's)]"""


def moved(rows: pl.DataFrame, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows [id, messages] with a share of their answers moved, and [id, answer_of, moved].

    Which rows give and take follows from their ids alone (the first of a hash order), so that the
    rows of a smaller share are among those of a larger one. Along that order each takes the answer
    of the next, the last that of the first; in conversations the second answers go round among
    those that have one, and so on. Where two answers read the same nothing changes, and `moved`
    says so. Raises UserError below two rows.
    """
    if len(rows) < FEWEST:
        raise UserError(f"an arm of {len(rows)} rows has no answers to move; give it more rows.")
    rank = pl.Series("rank", hash_rank(rows["id"], SEED))
    count = max(FEWEST, round(share * len(rows)))
    placed = rows.with_row_index("row").with_columns(place=rank.rank("ordinal"))
    turns = placed.with_columns(turn=pl.int_ranges(pl.col("messages").list.len()))
    turns = turns.explode("messages", "turn").unnest("messages")
    answers = turns.filter((pl.col("role") == "assistant") & (pl.col("place") <= count))
    answers = answers.sort("place", "turn")
    answers = answers.with_columns(nth=pl.int_range(pl.len()).over("row")).sort("nth", "place")
    taken = pl.col("content", "id")
    answers = answers.with_columns(
        taken.shift(-1).fill_null(taken.first()).over("nth").name.prefix("new_")
    )
    new = answers.select("row", "turn", "nth", "new_content", "new_id")
    joined = turns.join(new, on=["row", "turn"], how="left", maintain_order="left")
    joined = joined.with_columns(
        said=pl.coalesce("new_content", "content"),
        changed=(pl.col("new_content") != pl.col("content")).fill_null(False),
    )
    message = pl.struct(pl.col("role"), pl.col("said").alias("content"))
    whole = joined.group_by("row", maintain_order=True).agg(
        pl.col("id").first(),
        message.alias("messages"),
        answer_of=pl.col("new_id").filter(pl.col("nth") == 0).first(),
        moved=pl.col("changed").any(),
    )
    origin = whole.select("id", pl.coalesce("answer_of", "id").alias("answer_of"), "moved")
    return whole.select("id", pl.col("messages").cast(rows.schema["messages"])), origin
