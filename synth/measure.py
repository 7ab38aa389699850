"""Computing cells: draw the instructions, then whatever the schedule wants next, until every arm can choose.

`draw` and `measure` append finished cells to the pool's columns as they arrive, so a killed run continues where it stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import polars as pl

from core.columns import FAILED, Column
from core.endpoint import Servers
from core.errors import UserError
from core.store import Counts, canonical, digest
from core.tracking import Log
from synth import generate, published, templates
from synth.computing import COMPUTED
from synth.config import ImportConfig
from synth.filters import Filter, long_texts
from synth.lean import digest_pairs, digest_texts
from synth.measures import COLUMNS, MEASURES, prerequisites
from synth.pool import POOLED, SLICE, Pool
from synth.schedule import TokenCounter, wanted

Share = tuple[int, int]
"""(rank, world): this task's part of the rows when many machines fill one pool."""


def draw(pool: Pool, servers: Servers, log: Log, share: Share = (0, 1)) -> Counts:
    """Fill the pool's instructions: generate the missing ones, or import them. Returns rows, failures by reason and tokens (of the whole pool)."""
    config = pool.config
    if isinstance(config.rows, ImportConfig):
        if pool.drawn().is_empty():
            _import(pool, config.rows, log)
    else:
        missing = mine(pool.missing_instructions(), share)
        if len(missing):
            served = pool.context.serving(servers).serve(config.teacher)
            overrides = {"text": config.pre_query_template} if config.pre_query_template else None
            prompt = templates.pre_query(served.tokenizer, config.system_prompt, overrides)
            sampling = {k: v for k, v in config.instruction.items() if k != "seed"}
            constant = {
                "sampling": canonical(config.instruction), "model": served.model.name, "revision": served.model.revision,
                "template": digest(prompt.token_ids)[:16],
                "temperature": config.instruction.get("temperature"), "top_p": config.instruction.get("top_p"),
            }  # fmt: skip
            total = len(mine(pool.planned, share))
            done = total - len(missing)
            log.progress(done, total)
            for part in generate.instructions(missing.select("id", "seed"), prompt, sampling, served.endpoint):
                known = part.join(missing, on="id", how="left", maintain_order="left")
                pool.instruction.append(known.with_columns([pl.lit(v).alias(k) for k, v in constant.items()]))
                done += len(part)
                log.progress(done, total)
    if share == (0, 1):
        pool.instruction.compact()
    drawn = pool.drawn()
    failed = drawn.filter(pl.col("status") == FAILED)
    return {"rows": len(drawn), "failed": dict(Counter(failed["reason"].to_list())), "tokens": int(drawn["tokens"].sum() or 0)}


def mine(rows: pl.DataFrame, share: Share) -> pl.DataFrame:
    """This task's rows [id, ...] of many tasks': by the id alone, so that it never depends on what is missing."""
    rank, world = share
    if world == 1:
        return rows
    return rows.filter(pl.Series([int(digest(i)[:8], 16) % world == rank for i in rows["id"].to_list()], dtype=pl.Boolean))


def _import(pool: Pool, source: ImportConfig, log: Log) -> None:
    """Copy published rows and their tags into columns: an absent column is unmeasured, a null in a present one is a failed cell."""
    path = str(source.import_)
    done = 0
    for batch in published.read(path, limit=source.limit):
        frame = batch.with_columns(pl.int_range(done, done + len(batch), dtype=pl.Int64).alias("index"))
        pool.instruction.append(frame.with_columns(pl.lit(path).alias("model")), order=f"{done:012d}")
        texts = digest_texts(frame["instruction"].to_list())
        pairs = digest_pairs(texts, digest_texts(frame["response"].to_list())) if "response" in frame.columns else texts
        for measure, column in pool.imports.items():
            present = [n for n in COMPUTED[measure].fields if n in frame.columns and n not in ("tokens", "prompt_tokens", "finish_reason")]
            if not present:
                continue
            null = pl.col(present[0]).is_null()
            cells = frame.select("id", *present, pl.when(null).then(pl.lit("failed")).otherwise(pl.lit("ok")).alias("status"),
                                 pl.when(null).then(pl.lit("null in the imported data")).alias("reason"))  # fmt: skip
            column.append(cells.with_columns((pairs if MEASURES[measure].reads == "response" else texts).alias("of")), order=f"{done:012d}")
        done += len(batch)
        log.progress(done, source.limit)


def measure(
    pool: Pool, rules: Sequence[tuple[Filter, Sequence[int]]], servers: Servers, log: Log, tokens: TokenCounter | None = None, *,
    share: Share = (0, 1), only: Collection[str] | None = None,
) -> Counts:  # fmt: skip
    """Measure what the arms want, cheapest first, until nothing is wanted. Returns cells, seconds and failures by measure (of this call).

    `share` limits it to this task's rows (measures of the whole pool are left to a task that has all), `only` to some measures.
    """
    context = pool.context.serving(servers)
    counts: Counts = {}
    while True:
        frame = pool.frame(long_texts(r for r, _ in rules))
        wants = wanted(frame, rules, tokens, complete=pool.complete)
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
        _fill(pool, name, rows, column, context, log, counts.setdefault(name, {"cells": 0, "seconds": 0.0, "failed": {}}))


def _possible(frame: pl.DataFrame, wants: dict[str, list[str]], share: Share, only: Collection[str] | None) -> Iterable[tuple[str, pl.DataFrame]]:
    """What this task may measure of what is wanted: (measure, rows of the frame), cheapest first."""
    for name, ids in wants.items():
        if (only is not None and name not in only) or (name in POOLED and share != (0, 1)):
            continue
        rows = frame if name in POOLED else mine(frame.join(pl.DataFrame({"id": ids}), on="id", how="semi", maintain_order="left"), share)
        if len(rows):
            yield name, rows


def _fill(pool: Pool, name: str, rows: pl.DataFrame, column: Column, context: Any, log: Log, entry: dict[str, Any]) -> None:
    """Compute one measure's cells of these rows and append them as they arrive."""
    started, done = time.monotonic(), 0
    declared = MEASURES[name]
    texts = [c for m in ("text", *prerequisites(name)) for c, f in MEASURES[m].columns.items() if f.long and c not in ("raw_instruction", "thinking")]
    of = "of_pair" if declared.reads == "response" else "of"
    size = max(len(rows), 1) if name in POOLED else SLICE
    for top in range(0, len(rows), size):
        part_rows = pool.with_texts(rows.slice(top, size), texts)
        known = part_rows.select("id", pl.col(of).alias("of"))
        for part in COMPUTED[name].compute(part_rows, pool.config, context):
            column.append(part if name in POOLED else part.join(known, on="id", how="left", maintain_order="left"))
            done += len(part)
            entry["cells"] += len(part)
            if "status" in part.columns:
                for reason, n in Counter(part.filter(pl.col("status") == FAILED)["reason"].to_list()).items():
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


def _unmeasurable(name: str) -> str:
    columns = ", ".join(c for c in MEASURES[name].columns if COLUMNS[c][0] == name)
    how = _HOW.get(name, "it can only come from imported rows that hold it")
    return f"a filter asks for a column of '{name}' ({columns}) which this recipe gives no way to measure; {how}."


def cost(pool: Pool, rules: Sequence[tuple[Filter, Iterable[str]]], frame: pl.DataFrame) -> dict[str, Any]:
    """What the pool cost in generated tokens, and what answering and tagging every row first would have cost.

    `rules`: each filter with the ids it chose. The avoided tokens are the unmeasured cells times the mean of the measured ones, so they are
    an estimate; the tokens spent are counted.
    """
    drawn = pool.drawn()
    drawn_tokens = int(drawn["tokens"].sum() or 0)
    columns: list[dict[str, Any]] = [{"name": "instruction", "cells": len(drawn), "tokens": drawn_tokens, "prompt_tokens": 0}]
    naive = drawn_tokens
    answered = 0
    for name in pool.columns:
        cells = pool.spent(name, frame["id"])
        if cells is None or cells.is_empty():
            continue
        spent = int(cells["tokens"].sum() or 0)
        columns.append({"name": name, "cells": len(cells), "tokens": spent, "prompt_tokens": int(cells["prompt_tokens"].sum() or 0)})
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
