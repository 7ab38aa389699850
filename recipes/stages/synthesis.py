"""Instructions, measuring, one selection an arm, and the held-out conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.cells.content import frame_digest
from core.columns import OK
from core.errors import UserError
from core.files import link, write_changed
from core.store import Counts, Result, digest
from core.tracking import TABLE_ROWS, Log
from recipes.stages.session import REUSE, RUN, WAITS, Session, Stage
from recipes.stages.sets.held import say, says
from recipes.stages.tokens import (
    Contents,
    Conversations,
    Rows,
    TokenCounts,
    rows_digest,
    write_rows,
)
from recipes.stages.walk import HELDOUT, Arms, Selections
from synth.filters.orders import hash_rank
from synth.filters.rule import Rule, columns_of
from synth.filters.schedule import Selection, TokenCounter, remarks, select, wanted
from synth.pool import draw, mode_agreement, spending
from synth.pool import measure as measuring
from synth.pool.pool import Pool

SCORES = "scores.parquet"
FILE, DROPPED, POOL = "selection.parquet", "dropped.parquet", "pool.parquet"


@dataclass(frozen=True)
class Chosen:
    """What an arm chose from the pool, and by which rule."""

    rule: Rule
    selection: Selection


def from_pool(
    session: Session,
    arms: Arms,
    pool: Pool,
    tokens: TokenCounts | None,
    later: tuple[str, ...],
) -> Selections:
    """Draw, measure and select: a selection for every arm that chooses from the pool and every
    seed, and `HELDOUT` where rows are held out.

    `later`: measures whose means are not known yet in a plan (of the evaluation's prompts).
    """
    with nullcontext() if session.planning else pool.instruction.alone():
        frame = _measured(session, arms, pool, tokens, later)
    if frame is None:
        return _waiting(session, arms, heldout=bool(pool.config.heldout))
    selections: Selections = {}
    chosen: list[Chosen] = []
    for arm, rule in arms.rules.items():
        for seed, name in arms.selections(arm):
            selection = select(frame, rule, seed, tokens, pool.vectors)
            chosen.append(Chosen(rule, selection))
            _remark(session, name, selection)
            rows = Conversations.of(pool, frame, selection.ids)
            selections[(arm, seed)] = chosen_by(session, f"select/{name}", rows, chosen[-1])
            if tokens and tokens.uncounted and rule.budget and rule.budget.tokens:
                few = f"tokens of {tokens.uncounted} rows are estimates"
                session.add(f"select/{name}", f"{few} until a run counts them")
    selections = for_every_seed(selections, arms)
    if pool.config.heldout:
        selections[HELDOUT] = _heldout(session, pool, frame)
    if not session.planning:
        _report(session, pool, frame, chosen)
    return selections


def for_every_seed(selections: Selections, arms: Arms) -> Selections:
    """A selection that no seed changes serves them all."""
    first = arms.seeds[0]
    return {
        (arm, seed): selections.get((arm, seed), selections.get((arm, first)))
        for arm in arms.rules
        for seed in arms.seeds
    }


def _waiting(session: Session, arms: Arms, *, heldout: bool) -> Selections:
    """The same lines of a plan in which cells are missing."""
    names = [name for arm in arms.rules for _, name in arms.selections(arm)]
    for name in [*names, *(["heldout"] if heldout else [])]:
        session.note(f"select/{name}", WAITS, "depends on measure")
    selections: Selections = {(arm, seed): None for arm in arms.rules for seed in arms.seeds}
    return selections | ({HELDOUT: None} if heldout else {})


def _measured(
    session: Session,
    arms: Arms,
    pool: Pool,
    tokens: TokenCounter | None,
    later: tuple[str, ...],
) -> pl.DataFrame | None:
    """The pool with everything the arms want, or None in a plan when cells are missing."""
    rules = list(arms.rules.values())
    measuring.check(pool, rules, later)
    texts = columns_of(rules)
    if not _drawn(session, pool):
        return None
    frame = pool.frame(texts)
    if frame.is_empty():
        folder = pool.instruction.folder
        raise UserError(
            f"synth.rows: no usable instruction in the pool ({folder}); "
            "see the reasons in its parts."
        )
    seeded = [(rule, arms.seeds) for rule in rules]
    wants = wanted(frame, seeded, tokens, pool.complete, pool.vectors)
    if wants:
        cells = ", ".join(f"{len(ids)} of {len(frame)} {name}" for name, ids in wants.items())
        known = [f"missing now: {cells}; more may follow from them", spending.forecast(pool, wants)]
        session.note("measure", RUN, "; ".join(filter(None, known)))
        if session.planning:
            return None
        key = digest([pool.cells, [rule.name for rule in rules]])
        with session.tracker.stage("measure", "measure", key, {"cells": pool.cells}) as log:
            counts = measuring.measure(pool, seeded, session.servers, log, tokens)
            frame = pool.frame(texts)
            log.finish({"counts": counts, "output": digest(sorted(frame["id"].to_list()))})
    else:
        session.note("measure", REUSE, "")
    _check_modes(session, pool, frame)
    session.done("measure")
    return frame


def _drawn(session: Session, pool: Pool) -> bool:
    """Draw, or import, the instructions that are missing; false in a plan when there are any."""
    missing = 0 if pool.imported else len(pool.missing_instructions())
    if missing or pool.to_import():
        why = "not imported to the end yet"
        if missing:
            why = f"{missing} of {pool.config.rows} rows missing"
        session.note("instructions", RUN, why)
        if session.planning:
            session.note("measure", WAITS, "depends on instructions")
            session.add("measure", spending.before(pool.config))
            return False
        cell = pool.cells["instruction"]
        tracked = session.tracker.stage(
            "instructions", "instructions", digest(cell), {"cell": cell}
        )
        with tracked as log:
            counts = draw.draw(pool, session.servers, log)
            log.finish({"counts": counts, "output": digest(pool.drawn()["of"].to_list())})
            failed = counts["failed"]
            if failed:
                log.say(f"instructions: {sum(failed.values())} failed ({failed})")
    else:
        rows = len(pool.drawn())
        session.note("instructions", REUSE, f"{rows} rows", pool.instruction.folder)
    session.done("instructions")
    return True


def _check_modes(session: Session, pool: Pool, frame: pl.DataFrame) -> None:
    """Ask a sample of tagged rows in the other mode of asking, where the recipe's `check` wants to
    know how far both agree."""
    missing = mode_agreement.missing(pool, frame)
    if not missing:
        return
    rows = ", ".join(f"{len(ids)} {name}" for name, ids in missing.items())
    session.note("measure/check", RUN, f"in the other mode: {rows}")
    if not session.planning:
        key = digest([pool.cells, "check"])
        with session.tracker.stage("measure/check", "measure", key, {"cells": pool.cells}) as log:
            log.finish({"counts": mode_agreement.ask(pool, frame, session.servers, log)})


def _heldout(session: Session, pool: Pool, frame: pl.DataFrame) -> Result | None:
    """The conversations that no arm may choose, in hash order."""
    kept = frame.filter(pl.col("heldout") & (pl.col("status:response") == OK))
    ids = kept.sort(hash_rank(kept["id"], "heldout"))["id"].to_list()
    if not ids:
        raise UserError(
            "synth.heldout: no row of the pool is held out; draw more rows or raise the share."
        )
    rows = Conversations.of(pool, frame, ids)
    return selection_of(session, "select/heldout", rows, file="heldout.parquet")


def chosen_by(session: Session, name: str, rows: Rows, chosen: Chosen) -> Result | None:
    """The selection of an arm, and beside the recipe how the arm came to it."""
    rule = chosen.rule
    because = {
        "where": rule.where.text if rule.where else None,
        "choose": str(rule.choose),
        "budget": str(rule.budget),
    }
    result = selection_of(session, name, rows, because=because)
    if result is not None and not session.planning:
        _keep_funnel(session, name, chosen.selection, result)
    return result


def selection_of(
    session: Session,
    name: str,
    rows: Rows,
    *,
    file: str = FILE,
    because: Mapping[str, Any] | None = None,
) -> Result | None:
    """A selection is keyed by its ordered (id, content) list: two rules that choose the same rows
    are one selection."""
    content = rows_digest(rows) if isinstance(rows, pl.DataFrame) else _content(session, name, rows)
    if content is None:
        return session.unmade(name, {**(because or {}), "file": file})

    def make(out: Path, log: Log, _: dict[str, Path]) -> Counts:
        count = write_rows(rows, out / file)
        log.metrics({"rows": float(count)})
        return {"rows": count}

    spec = {"rows": content, "file": file}
    stage = Stage(name, spec, {}, make, content=lambda _: content, because=because or {})
    result = session.result(stage)
    if result is None and session.planning:  # its content is known before it is written
        return Result(Path(), {"digest": content})
    return result


def _content(session: Session, name: str, rows: Conversations) -> str | None:
    """What rows of the pool hold: worked out once and kept, so that nobody reads their texts again
    for it; None in a plan of rows that were never chosen before."""
    contents = Contents(session.store.root)
    content = contents.find(rows.known_as)
    if content is None and session.planning:
        made = session.last(name).get("rows")
        # What an earlier version made is nowhere kept: it may be these rows.
        if made is None or made in contents.all():
            return None
    if content is None:
        content = rows_digest(rows.slices())
        contents.keep(rows.known_as, content)
    return content


def _keep_scores(file: Path, scores: pl.DataFrame | None) -> None:
    """What a file of ids says of the chosen rows, where one chose."""
    if scores is None or (file.is_file() and pl.read_parquet(file, glob=False).equals(scores)):
        return
    scores.write_parquet(file)


def _keep_funnel(session: Session, name: str, chosen: Selection, made: Result) -> None:
    """Beside the recipe: how this arm came to its rows, and why every other row is out (a selection
    itself may be shared by two rules)."""
    folder, selection = session.folder / name, made.path / FILE
    chosen_here = folder / selection.name
    held = {FILE: made.digest, DROPPED: frame_digest(chosen.dropped)}
    funnel = json.dumps(chosen.funnel, indent=1)
    new = write_changed(folder / "funnel.json", funnel)
    _keep_scores(folder / SCORES, chosen.scores)
    linked = chosen_here.is_file() and chosen_here.samefile(selection)
    if not new and linked and says(folder, held) and (folder / DROPPED).is_file():
        return
    chosen.dropped.write_parquet(folder / DROPPED)
    link(selection, chosen_here)
    say(folder, held)
    key = digest([name, funnel])
    settings = {"funnel": chosen.funnel}
    with session.tracker.stage(f"funnel {name}", "select", key, settings) as log:
        log.table("dropped", chosen.dropped)
        contents = pl.col("messages").list.eval(pl.element().struct.field("content"))
        text = contents.list.join("\n---\n").alias("text")
        rows = pl.scan_parquet(selection, glob=False).head(TABLE_ROWS)
        log.table("kept", rows.select("id", text).collect())


def _keep_snapshot(session: Session, pool: Pool, frame: pl.DataFrame) -> None:
    """The pool with all its texts, for the report and exports: written once a content, below
    `STORE/snapshots`, and linked beside every recipe that has it."""
    content = pool.content(frame)
    held = session.store.root / "snapshots" / f"{content}.parquet"
    shown = session.folder / "measure" / POOL
    if not held.is_file():
        pool.snapshot(frame, held)
    before = []
    if shown.is_file():
        before = [path for path in held.parent.glob("*.parquet") if path.samefile(shown)]
    link(held, shown)
    for path in before:
        if path.stat().st_nlink == 1:  # no recipe's any more
            path.unlink()
    say(shown.parent, {POOL: content})


def _remark(session: Session, name: str, chosen: Selection) -> None:
    if not session.planning:
        for sentence in remarks(chosen.funnel):
            session.log.say(f"select/{name}: {sentence}")


def _report(session: Session, pool: Pool, frame: pl.DataFrame, chosen: list[Chosen]) -> None:
    """A snapshot of the pool and its cost for the report, and the line that says what was not paid
    for."""
    folder = session.folder / "measure"
    kept = [(one.rule, one.selection.ids) for one in chosen]
    cost = spending.cost(pool, kept, frame)
    write_changed(folder / "cost.json", json.dumps(cost, indent=1))
    agreed = mode_agreement.report(pool, frame)
    write_changed(folder / "tag_agreement.json", json.dumps(agreed, indent=1))
    for name, figures in agreed.items():
        session.log.say(mode_agreement.sentence(name, figures))
    _keep_snapshot(session, pool, frame)
    for line in spending.lines(pool.context.ledger().bills()):
        session.log.say(line)
    spent, naive = cost["tokens_spent"], cost["naive_tokens"]
    session.log.say(
        f"tokens spent: {spent:,} generated; answering and tagging every row first would have cost "
        f"about {naive:,} (avoided: {cost['tokens_avoided']:,}); "
        f"{cost['rows_answered']} of {cost['rows_pool']} rows answered; "
        f"{cost['cost_per_kept_row']} tokens a kept row"
    )
