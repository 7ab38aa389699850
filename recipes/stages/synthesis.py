"""The synthesis half of the graph: instructions, measure, one selection an arm, and the held-out
conversations."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from core.columns import OK
from core.errors import UserError
from core.store import Build, Result, digest
from core.tracking import Log
from recipes.stages import eval_prompts
from recipes.stages.session import RUN, WAITS
from recipes.stages.tokens import _messages, conversations, token_counter
from synth.context import Context
from synth.filters.orders import hash_rank
from synth.filters.rule import Filter, columns_of
from synth.filters.schedule import Selection, select, wanted
from synth.pool import draw, mode_agreement
from synth.pool import measure as measuring
from synth.pool.pool import Pool
from synth.published import rows as published

if TYPE_CHECKING:
    from recipes.stages.graph import Stages


def stages(graph: Stages) -> dict[tuple[str, int], Result | None]:
    """Draw, measure and select: a selection for every (arm, seed) that trains, and ("heldout", 0)
    where rows are held out."""
    session, recipe = graph.session, graph.recipe
    needs_pool = bool(graph.filters) or recipe.synth.heldout > 0
    chosen: dict[tuple[str, int], Result | None] = {}
    if needs_pool:
        pool = pool_of(graph)
        with nullcontext() if session.planning else pool.instruction.alone():
            frame = _measured(graph, pool)
        chosen |= _select(graph, pool, frame)
    for arm, config in graph.arms.items():
        if config.data is not None:
            for seed in graph.seeds:
                chosen[(arm, seed)] = _select_data(graph, arm, seed)
    session.done("select")
    return chosen


def pool_of(graph: Stages) -> Pool:
    """The pool of the recipe."""
    return Pool(
        graph.recipe.synth,
        Context(graph.session.store.root, graph.resolve, eval_prompts.eval_prompts(graph)),
    )


def _measured(graph: Stages, pool: Pool) -> pl.DataFrame | None:
    """The pool with everything the arms want, or None in a plan when cells are missing."""
    session = graph.session
    rules = [(rule, graph.seeds) for rule in graph.filters.values()]
    # A plan writes no file of the evaluation's prompts, so there the pool knows of none.
    later = (
        ("overlap", "eval_distance") if session.planning and graph.recipe.eval is not None else ()
    )
    measuring.check(pool, list(graph.filters.values()), later)
    tokens = token_counter(graph, pool)
    texts = columns_of(graph.filters.values())
    missing = 0 if pool.imported else len(pool.missing_instructions())
    empty = pool.to_import()
    if missing or empty:
        total = graph.recipe.synth.rows
        session.note(
            "instructions",
            RUN,
            f"{missing} of {total} rows missing" if missing else "not imported to the end yet",
        )
        if session.planning:
            session.note("measure", WAITS, "depends on instructions")
            return None
    else:
        session.note("instructions", "reuse", f"{len(pool.drawn())} rows", pool.instruction.folder)
    if not session.planning and (missing or empty):
        with session.tracker.stage(
            "instructions",
            "instructions",
            digest(pool.cells["instruction"]),
            {"cell": pool.cells["instruction"]},
        ) as log:
            counts = draw.draw(pool, session.servers, log)
            log.finish({"counts": counts, "output": digest(pool.drawn()["of"].to_list())})
            if counts["failed"]:
                log.say(
                    f"instructions: {sum(counts['failed'].values())} failed ({counts['failed']})"
                )
    session.done("instructions")
    frame = pool.frame(texts)
    if frame.is_empty():
        raise UserError(
            f"synth.rows: no usable instruction in the pool ({pool.instruction.folder}); see the reasons in its parts."
        )
    wants = wanted(frame, rules, tokens, pool.complete, pool.vectors)
    if not wants:
        session.note("measure", "reuse", "")
    else:
        cells = ", ".join(f"{len(ids)} of {len(frame)} {name}" for name, ids in wants.items())
        session.note("measure", RUN, f"missing now: {cells}; more may follow from them")
        if session.planning:
            return None
        key = digest([pool.cells, [r.name for r, _ in rules]])
        with session.tracker.stage("measure", "measure", key, {"cells": pool.cells}) as log:
            counts = measuring.measure(pool, rules, session.servers, log, tokens)
            frame = pool.frame(texts)
            log.finish({"counts": counts, "output": digest(sorted(frame["id"].to_list()))})
    _check_modes(graph, pool, frame)
    session.done("measure")
    return frame


def _check_modes(graph: Stages, pool: Pool, frame: pl.DataFrame) -> None:
    """Ask a sample of tagged rows in the other mode of asking, where the recipe's `check` wants to
    know how far both agree."""
    missing = mode_agreement.missing(pool, frame)
    if not missing:
        return
    session = graph.session
    session.note(
        "measure/check",
        RUN,
        "in the other mode: " + ", ".join(f"{len(rows)} {name}" for name, rows in missing.items()),
    )
    if not session.planning:
        with session.tracker.stage(
            "measure/check", "measure", digest([pool.cells, "check"]), {"cells": pool.cells}
        ) as log:
            log.finish({"counts": mode_agreement.ask(pool, frame, session.servers, log)})


def _select(
    graph: Stages, pool: Pool, frame: pl.DataFrame | None
) -> dict[tuple[str, int], Result | None]:
    session = graph.session
    found: dict[tuple[str, int], Result | None] = {}
    picked: list[tuple[Filter, Selection]] = []
    for arm, rule in graph.filters.items():
        for seed in graph.seeds:
            shared = (
                found.get((arm, graph.seeds[0]))
                if not rule.seeded and seed != graph.seeds[0]
                else None
            )
            name = f"select/{arm}/{seed}" if rule.seeded else f"select/{arm}"
            if frame is None:
                if shared is None and (rule.seeded or seed == graph.seeds[0]):
                    session.note(name, WAITS, "depends on measure")
                found[(arm, seed)] = None
            elif shared is not None:
                found[(arm, seed)] = shared
            else:
                picked.append(
                    (rule, select(frame, rule, seed, token_counter(graph, pool), pool.vectors))
                )
                found[(arm, seed)] = _write(
                    graph,
                    name,
                    conversations(pool, frame, picked[-1][1].ids),
                    picked[-1][1],
                    because=_because(rule),
                )
    if frame is not None:
        if graph.recipe.synth.heldout:
            ids = frame.filter(pl.col("heldout") & (pl.col("status:response") == OK))
            ranked = (
                ids.with_columns(hash_rank(ids["id"], "heldout").alias("h"))
                .sort("h")["id"]
                .to_list()
            )
            if not ranked:
                raise UserError(
                    "synth.heldout: no row of the pool is held out; draw more rows or raise the share."
                )
            found[("heldout", 0)] = _write(
                graph,
                "select/heldout",
                conversations(pool, frame, ranked),
                None,
                file="heldout.parquet",
            )
        _measure_result(graph, pool, frame, picked)
    elif graph.recipe.synth.heldout:
        session.note("select/heldout", WAITS, "depends on measure")
        found[("heldout", 0)] = None
    return found


def _because(rule: Filter) -> dict[str, str | None]:
    return {
        "where": rule.where.text if rule.where else None,
        "choose": rule.taking,
        "budget": str(rule.budget),
    }


def _write(
    graph: Stages,
    name: str,
    rows: pl.DataFrame,
    chosen: Selection | None,
    file: str = "selection.parquet",
    because: dict[str, str | None] | None = None,
) -> Result | None:
    """A selection is keyed by its ordered (id, content) list: two filters that choose the same rows
    are one selection."""
    from recipes.stages.graph import rows_digest

    content = rows_digest(rows)

    def make(build: Build, log: Log) -> None:
        rows.write_parquet(build.path / file)
        build.counts["rows"] = len(rows)
        log.metrics({"rows": float(len(rows))})

    result = graph.session.stage(
        name, {"rows": content, "file": file}, {}, make, content=lambda _: content, because=because
    )
    if chosen is not None and result is not None and not graph.session.planning:
        _keep_funnel(graph, name, chosen, result.path / file)
    return result or (Result(Path(), {"digest": content}) if graph.session.planning else None)


def _keep_funnel(graph: Stages, name: str, chosen: Selection, selection: Path) -> None:
    """Beside the recipe: how this arm came to its rows, and why every other row is out (a selection
    itself may be shared by two filters)."""
    folder = graph.session.store.root / "recipes" / graph.recipe.name / name
    folder.mkdir(parents=True, exist_ok=True)
    funnel = json.dumps(chosen.funnel, indent=1)
    known = folder / "funnel.json"
    if (
        known.is_file()
        and known.read_text() == funnel
        and (folder / selection.name).is_file()
        and (folder / selection.name).samefile(selection)
    ):
        return
    known.write_text(funnel)
    chosen.dropped.write_parquet(folder / "dropped.parquet")
    (folder / selection.name).unlink(missing_ok=True)
    (folder / selection.name).hardlink_to(selection)
    with graph.session.tracker.stage(
        f"funnel {name}", "select", digest([name, funnel]), {"funnel": chosen.funnel}
    ) as log:
        log.table("dropped", chosen.dropped)
        text = (
            pl.col("messages").list.eval(pl.element().struct.field("content")).list.join("\n---\n")
        )
        log.table("kept", pl.read_parquet(selection).select("id", text.alias("text")))


def _measure_result(
    graph: Stages, pool: Pool, frame: pl.DataFrame, picked: list[tuple[Filter, Selection]]
) -> None:
    """A snapshot of the pool and its cost for the report, and the line that says what was not paid
    for."""
    session = graph.session
    if session.planning:
        return
    folder = session.store.root / "recipes" / graph.recipe.name / "measure"
    folder.mkdir(parents=True, exist_ok=True)
    cost = measuring.cost(pool, [(rule, chosen.ids) for rule, chosen in picked], frame)
    (folder / "cost.json").write_text(json.dumps(cost, indent=1))
    agreed = mode_agreement.report(pool, frame)
    (folder / "tag_agreement.json").write_text(json.dumps(agreed, indent=1))
    for name, figures in agreed.items():
        session.log.say(mode_agreement.sentence(name, figures))
    pool.snapshot(frame, folder / "pool.parquet")
    session.log.say(
        f"tokens spent: {cost['tokens_spent']:,} generated; answering and tagging every row first would have cost about {cost['naive_tokens']:,} "
        f"(avoided: {cost['tokens_avoided']:,}); {cost['rows_answered']} of {cost['rows_pool']} rows answered; "
        f"{cost['cost_per_kept_row']} tokens a kept row"
    )


def _select_data(graph: Stages, arm: str, seed: int) -> Result | None:
    """An arm that is someone else's data: its rows in hash order up to the budget."""
    config = graph.arms[arm]
    assert config.data is not None
    rows = pl.concat(
        [
            f.select("id", "instruction", "response", "messages", "status")
            for f in published.read(config.data)
        ]
    )
    if not graph.session.planning and (failed := int((rows["status"] != OK).sum())):
        graph.session.log.say(
            f"select/{arm}: {failed} of {len(rows)} rows of {config.data} are failed rows and left out (`magpie import` says why)"
        )
    rows = rows.filter(pl.col("status") == OK)
    rows = rows.with_columns(hash_rank(rows["id"], seed).alias("h")).sort("h")
    if config.budget is not None and config.budget.tokens is not None:
        raise UserError(f"arms.{arm}.budget: an arm with `data` takes a budget in rows.")
    if config.budget is not None and config.budget.rows is not None:
        if len(rows) < config.budget.rows and not config.allow_short:
            budget = config.budget.rows
            raise UserError(
                f"arms.{arm}.data: {config.data} has {len(rows)} usable rows of {budget}; say `allow_short: true`."
            )
        rows = rows.head(config.budget.rows)
    return _write(graph, f"select/{arm}/{seed}", _messages(rows), None)
