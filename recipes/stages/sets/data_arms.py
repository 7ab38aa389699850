"""Arms that choose from someone else's data, by the same rules as those that choose from the pool.

What says nothing of which rows come first is taken in hash order up to its budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import polars as pl

from core.store import Result
from recipes.stages.session import WAITS, Session
from recipes.stages.sets import beside
from recipes.stages.sets.data_sets import DataSet, imported, measured, unusable
from recipes.stages.sets.licences import licence_of
from recipes.stages.synthesis import Chosen, chosen_by, for_every_seed
from recipes.stages.tokens import Conversations
from recipes.stages.walk import HELDOUT, Selections
from synth.filters.schedule import remarks, select
from synth.pool.short_columns import digest_texts


def from_data(session: Session, sets: Mapping[str, DataSet], selections: Selections) -> Selections:
    """A selection for every arm that is someone else's data and every seed. `selections`: those of
    the pool's own arms, and the rows that are held out."""
    found: Selections = {}
    distinct = {id(one): one for one in sets.values()}
    for one in distinct.values():
        imported(session, one)
    session.done("instructions")
    for one in distinct.values():
        rules = {name: rule for name, rule in one.rules.items() if name in one.arms.configs}
        if rules:
            found |= _of_set(session, replace(one, rules=rules), selections)
    session.done("measure")
    return found


def _of_set(session: Session, one: DataSet, selections: Selections) -> Selections:
    """The selections of all arms that choose from one data set."""
    arms = replace(one.arms, rules=one.rules)
    seeded = [(rule, arms.seeds) for rule in one.rules.values()]
    waits = f"measure/{one.name}"
    if HELDOUT in selections and texts_of(selections[HELDOUT]) is None:
        waits, frame = "select/heldout", None
    else:
        frame = measured(session, one, seeded)
    failed = {} if frame is None else unusable(one)
    found: Selections = {}
    for arm, rule in one.rules.items():
        for seed, name in arms.selections(arm):
            if frame is None:
                session.note(f"select/{name}", WAITS, f"depends on {waits}")
                found[(arm, seed)] = None
                continue
            plain = not one.arms.configs[arm].filtered
            usable = frame if plain else without_heldout(frame, selections)
            selection = select(usable, rule, seed, one.tokens([rule]), one.pool.vectors)
            selection.funnel["unusable"] = failed
            rows = Conversations.of(one.pool, frame, selection.ids)
            chosen = Chosen(rule, selection)
            found[(arm, seed)] = chosen_by(session, f"select/{name}", rows, chosen)
            if not session.planning:
                for sentence in remarks(selection.funnel):
                    session.log.say(f"select/{name}: {sentence}")
                known = one.pool.measures
                texts = known.long_columns(c for c in frame.columns if c in known.columns)
                kept = frame[selection.rows].drop(texts)
                beside.keep_rows(session, name, with_licence(session, one, arm, kept))
    return for_every_seed(found, arms)


def with_licence(session: Session, one: DataSet, name: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with the licence of each: what the arm states, else what the row says, else what the
    data's card says. `name`: the arm, or the part of a mixture ("MIXTURE/PART")."""
    choosing = one.arms.choosing(name)
    if choosing.licence:
        return rows.with_columns(licence=pl.lit(choosing.licence))
    own = pl.col("licence") if "licence" in rows.columns else pl.lit(None, pl.String)
    folder, revision = one.pool.instruction.folder, choosing.revision
    card = licence_of(one.source, revision, folder, ask=not session.planning)
    return rows.with_columns(licence=pl.coalesce(own, pl.lit(card, pl.String)))


def without_heldout(frame: pl.DataFrame, selections: Selections) -> pl.DataFrame:
    """The frame with the rows reserved whose instruction is one that the recipe holds out."""
    texts = texts_of(selections.get(HELDOUT)) or set()
    if not texts:
        return frame
    held = pl.Series(sorted(texts), dtype=pl.String)
    return frame.with_columns(reserved=pl.col("reserved") | pl.col("of").is_in(held.implode()))


def texts_of(heldout: Result | None) -> set[str] | None:
    """Digests of the instructions that are held out; None while they are not written."""
    if heldout is None or not (heldout.path / "heldout.parquet").is_file():
        return None
    rows = pl.read_parquet(heldout.path / "heldout.parquet", columns=["messages"], glob=False)
    return set(digest_texts(rows.select(first_asked()).to_series()))


def first_asked() -> pl.Expr:
    """The first user's message of each conversation."""
    turn = pl.element().struct
    asked = pl.element().filter(turn.field("role") == "user").struct.field("content")
    return pl.col("messages").list.eval(asked).list.first()
