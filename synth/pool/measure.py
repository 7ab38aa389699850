"""Computing cells: whatever the schedule wants next, until every arm can choose.

Finished cells are appended to the pool's columns as they arrive, so a killed run continues where it
stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from core.columns import FAILED, Column
from core.errors import UserError
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from synth.context import Context
from synth.filters.rule import Filter, columns_of, measures_of
from synth.filters.schedule import TokenCounter, wanted
from synth.measures import COLUMNS, MEASURES, by_cost, prerequisites
from synth.pool.computed import COMPUTED
from synth.pool.draw import Share, mine
from synth.pool.pool import POOLED, SLICE, Pool


def measure(
    pool: Pool,
    rules: Sequence[tuple[Filter, Sequence[int]]],
    servers: Servers,
    log: Log,
    tokens: TokenCounter | None = None,
    *,
    share: Share = (0, 1),
    only: Collection[str] | None = None,
) -> Counts:
    """Measure what the arms want, cheapest first, until nothing is wanted. Returns cells, seconds
    and failures by measure (of this call).

    `share` limits it to this task's rows (measures of the whole pool are left to a task that has
    all), `only` to some measures.
    """
    context = pool.context.serving(servers, log.say)
    counts: Counts = {}
    while True:
        frame = pool.frame(columns_of(r for r, _ in rules))
        wants = wanted(frame, rules, tokens, pool.complete, pool.vectors)
        name, rows = next(iter(_possible(frame, wants, share, only)), ("", frame))
        if not name:
            if share == (0, 1):
                for each in pool.columns.values():
                    each.compact()
            return counts
        column = pool.column(name, frame)
        if column is None:
            raise UserError(_unmeasurable(name))
        log.say(f"measuring {name}: {len(rows)} of {len(frame)} rows")
        _fill(
            pool,
            name,
            rows,
            column,
            context,
            log,
            counts.setdefault(name, {"cells": 0, "seconds": 0.0, "failed": {}}),
        )


def _possible(
    frame: pl.DataFrame, wants: dict[str, list[str]], share: Share, only: Collection[str] | None
) -> Iterable[tuple[str, pl.DataFrame]]:
    """What this task may measure of what is wanted: (measure, rows of the frame), cheapest
    first."""
    for name, ids in wants.items():
        if (only is not None and name not in only) or (name in POOLED and share != (0, 1)):
            continue
        rows = (
            frame
            if name in POOLED
            else mine(
                frame.join(pl.DataFrame({"id": ids}), on="id", how="semi", maintain_order="left"),
                share,
            )
        )
        if len(rows):
            yield name, rows


def _fill(
    pool: Pool,
    name: str,
    rows: pl.DataFrame,
    column: Column,
    context: Context,
    log: Log,
    entry: dict[str, Any],
) -> None:
    """Compute one measure's cells of these rows and append them as they arrive."""
    started, done = time.monotonic(), 0
    declared = MEASURES[name]
    unread = {"thinking"} if name == "sanitized" else {"thinking", "raw_instruction"}
    texts = [
        c
        for m in ("text", *prerequisites(name))
        for c, f in MEASURES[m].columns.items()
        if f.long and c not in unread
    ]
    of = "of_pair" if declared.reads == "response" else "of"
    size = SLICE
    if name in POOLED:
        size, texts, context = (
            max(len(rows), 1),
            [],
            replace(context, instructions=pool.instructions),
        )
    for top in range(0, len(rows), size):
        part_rows = pool.with_texts(rows.slice(top, size), texts)
        known = part_rows.select("id", pl.col(of).alias("of"))
        for part in COMPUTED[name].compute(part_rows, pool.config, context):
            column.append(
                part
                if name in POOLED
                else part.join(known, on="id", how="left", maintain_order="left")
            )
            done += len(part)
            entry["cells"] += len(part)
            if "status" in part.columns:
                for reason, n in Counter(
                    part.filter(pl.col("status") == FAILED)["reason"].to_list()
                ).items():
                    entry["failed"][reason] = entry["failed"].get(reason, 0) + n
            log.progress(done, len(rows))
            log.metrics({f"{name}/cells": float(entry["cells"])})
    entry["seconds"] = round(entry["seconds"] + time.monotonic() - started, 2)


_HOW = {
    "reward": "add `synth.tags.reward: {model: ...}`",
    "reward_difference": "add `synth.tags.base: {model: ...}` and `synth.tags.reward`",
    "base_response": "add `synth.tags.base: {model: ...}`, the base model that is to answer",
    "safety": "add `synth.tags.safety: {model: ...}`",
    "overlap": "the recipe has no `eval` with prompts to compare with; add one, or name a file in `synth.tags.decontaminate`",
    "eval_distance": "the recipe has no `eval` with prompts to compare with; add one, or name a file in `synth.tags.decontaminate`",
    "sanitized": "add `synth.sanitize: gemma` or `llama-3`",
}


def check(pool: Pool, rules: Sequence[Filter], besides: Collection[str] = ()) -> None:
    """Find out before anything is bought whether a drawn pool can measure what the filters read,
    and what that needs first.

    Imported rows may hold anything, so nothing is said of them. `besides`: measures that are known
    to be possible later. Raises UserError.
    """
    if pool.imported:
        return
    for rule in rules:
        needed = measures_of(rule.columns)
        for name in needed:
            needed += [first for first in prerequisites(name) if first not in needed]
        for name in sorted(needed, key=by_cost().index):
            if name not in pool.cells and name not in (*besides, "turns"):
                raise UserError(f"arms.{rule.name}: {_unmeasurable(name)}")


def _unmeasurable(name: str) -> str:
    columns = ", ".join(c for c in MEASURES[name].columns if COLUMNS[c][0] == name)
    how = _HOW.get(name, "it can only come from imported rows that hold it")
    return f"a filter asks for a column of '{name}' ({columns}) which this recipe gives no way to measure; {how}."


def cost(
    pool: Pool, rules: Sequence[tuple[Filter, Iterable[str]]], frame: pl.DataFrame
) -> dict[str, Any]:
    """What the pool cost in generated tokens, and what answering and tagging every row first would
    have cost.

    `rules`: each filter with the ids it chose. The avoided tokens are the unmeasured cells times
    the mean of the measured ones, so they are an estimate; the tokens spent are counted.
    """
    drawn = pool.drawn()
    drawn_tokens = int(drawn["tokens"].sum() or 0)
    columns: list[dict[str, Any]] = [
        {"name": "instruction", "cells": len(drawn), "tokens": drawn_tokens, "prompt_tokens": 0}
    ]
    naive = drawn_tokens
    answered = 0
    for name in pool.columns:
        cells = pool.spent(name, frame["id"])
        if cells is None or cells.is_empty():
            continue
        spent = int(cells["tokens"].sum() or 0)
        columns.append(
            {
                "name": name,
                "cells": len(cells),
                "tokens": spent,
                "prompt_tokens": int(cells["prompt_tokens"].sum() or 0),
            }
        )
        naive += round(spent / len(cells) * len(frame))
        answered = len(cells) if name == "response" else answered
    total = sum(int(c["tokens"]) for c in columns)
    kept_rows = {i for _, chosen in rules for i in chosen}
    return {
        "columns": columns,
        "tokens_spent": total,
        "naive_tokens": naive,
        "tokens_avoided": naive - total,
        "rows_pool": len(frame),
        "rows_answered": answered,
        "rows_kept": len(kept_rows),
        "cost_per_kept_row": round(total / len(kept_rows), 1) if kept_rows else None,
        "naive_cost_per_kept_row": round(naive / len(kept_rows), 1) if kept_rows else None,
    }
