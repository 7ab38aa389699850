"""Computing cells: whatever the schedule wants next, until every arm can choose.

Finished cells are appended to the pool's columns as they arrive, so a killed run continues where it
stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import polars as pl

from core.cells.seconds import filling
from core.columns import FAILED, OK, Column
from core.errors import UserError
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from synth.context import Serving
from synth.filters.rule import Rule, columns_of
from synth.filters.schedule import TokenCounter, wanted
from synth.measures import POOLED, Measure, Measures
from synth.pool import imported_answers
from synth.pool.draw import Share, mine
from synth.pool.pool import SLICE, Pool

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """One of several tasks that measure a pool together: its share of the rows (measures of the
    whole pool are left to a task that has all), and the only measures that it may do; None: all."""

    share: Share = (0, 1)
    only: Collection[str] | None = None

    @property
    def alone(self) -> bool:
        """Whether it has every row."""
        return self.share == (0, 1)


def measure(
    pool: Pool,
    rules: Sequence[tuple[Rule, Sequence[int]]],
    servers: Servers,
    log: Log,
    tokens: TokenCounter | None = None,
    task: Task = Task(),
) -> Counts:
    """Measure what the arms want, cheapest first, until nothing is wanted. Returns cells, seconds
    and failures by measure (of this call)."""
    context = replace(pool.context.serving(servers, log.say), progress=log.progress)
    counts: Counts = {}
    while True:
        frame = pool.frame(columns_of(rule for rule, _ in rules))
        wants = wanted(frame, rules, tokens, pool.complete, pool.vectors)
        name, rows = next(_possible(frame, wants, task), ("", frame))
        if not name:
            break
        column = pool.column(name, frame)
        if column is None:
            raise UserError(_unmeasurable(name, pool.measures))
        log.say(f"measuring {name}: {len(rows)} of {len(frame)} rows")
        _count(counts, name, filled(pool, name, rows, column, context), column, log)
        del frame, wants, rows  # before the next ones are made
    if task.alone:
        pool.merge(log.say)
    else:
        pool.cut()
    return counts


def every(pool: Pool, names: Sequence[str], servers: Servers, log: Log) -> Counts:
    """Measure these of every row that can have them, cheapest first, each after what it needs but
    the response, which is never bought here. Returns cells, seconds and failures by measure (of
    this call).

    Raises UserError for a measure that the recipe gives no way to have.
    """
    context = pool.context.serving(servers, log.say)
    counts: Counts = {}
    for name in _with_needed(names, pool.measures):
        frame = pool.frame()
        column = pool.column(name, frame)
        if column is None:
            raise UserError(_unmeasurable(name, pool.measures))
        ready = [pl.col(f"status:{m}") == OK for m in pool.measures.prerequisites(name)]
        rows = frame.filter(pl.col(f"status:{name}").is_null(), *ready)
        if len(rows):
            rows = frame if name in POOLED else rows
            log.say(f"measuring {name}: {len(rows)} of {len(frame)} rows")
            _count(counts, name, filled(pool, name, rows, column, context), column, log)
    pool.merge(log.say)
    return counts


def _with_needed(names: Sequence[str], measures: Measures) -> list[str]:
    """The measures and those whose cells theirs need, cheapest first."""
    needed = list(names)
    for name in needed:
        needed += [m for m in measures.prerequisites(name) if m not in (*needed, "response")]
    return sorted(needed, key=measures.by_cost().index)


def _possible(
    frame: pl.DataFrame, wants: dict[str, list[str]], task: Task
) -> Iterator[tuple[str, pl.DataFrame]]:
    """What this task may measure of what is wanted: (measure, rows of the frame), cheapest
    first."""
    for name, ids in wants.items():
        if task.only is not None and name not in task.only:
            continue
        if name not in POOLED:
            of_ids = pl.DataFrame({"id": ids})
            rows = mine(frame.join(of_ids, on="id", how="semi", maintain_order="left"), task.share)
        else:
            rows = frame if task.alone else frame.clear()
        if len(rows):
            yield name, rows


def filled(
    pool: Pool, name: str, rows: pl.DataFrame, column: Column, context: Serving
) -> Iterator[tuple[pl.DataFrame, int]]:
    """Compute one measure's cells of these rows and append them to its column as they arrive:
    (finished cells, how many rows there are) of each batch."""
    if pool.computed[name].stream is not None:
        if name == "response":
            lost = pool.with_system_prompt(rows)
            yield from _refused(lost, len(rows), column, imported_answers.SYSTEM_PROMPT)
            rows = rows.join(lost, on="id", how="anti", maintain_order="left")
        yield from _streamed(pool, name, rows, column, context)
        return
    compute = pool.computed[name].compute
    if name in POOLED:
        whole = replace(context, instructions=pool.instructions)
        for cells in compute(rows, pool.config, whole):
            column.append(cells)
            yield cells, len(rows)
        column.cut()
        return
    texts, measured = _texts_for(name, pool.measures), pool.measures.table[name].of
    for part in rows.iter_slices(SLICE):
        of = dict(part.select("id", measured).iter_rows())
        for cells in compute(pool.with_texts(part, texts), pool.config, context):
            column.append(_told_apart(cells, of))
            yield cells, len(rows)


def _refused(
    rows: pl.DataFrame, total: int, column: Column, reason: str
) -> Iterator[tuple[pl.DataFrame, int]]:
    """Failed cells of rows [id, of] that nobody is asked about, as `filled` yields them."""
    if len(rows):
        cells = rows.with_columns(status=pl.lit(FAILED), reason=pl.lit(reason))
        column.append(cells)
        yield cells, total


def _streamed(
    pool: Pool,
    name: str,
    rows: pl.DataFrame,
    column: Column,
    context: Serving,
) -> Iterator[tuple[pl.DataFrame, int]]:
    """`filled` of a measure that asks a server once a row: the texts of the next slice are read
    while requests of this one are in flight, so the server never drains in between."""
    stream = pool.computed[name].stream
    assert stream is not None
    texts, measured = _texts_for(name, pool.measures), pool.measures.table[name].of
    of: dict[str, str] = {}  # of rows that are being asked about

    def prepared() -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        for part in rows.iter_slices(SLICE):
            yield part.select("id", measured), pool.with_texts(part, texts).select("id", *texts)

    def frames() -> Iterator[pl.DataFrame]:
        for part, filled in ahead(prepared()):
            of.update(part.iter_rows())
            yield filled

    for cells in stream(frames(), pool.config, context):
        column.append(_told_apart(cells, of))
        for row in cells["id"]:
            del of[row]
        yield cells, len(rows)


def _told_apart(cells: pl.DataFrame, of: Mapping[str, str]) -> pl.DataFrame:
    """Cells with the digest of the text that each is of."""
    return cells.with_columns(of=pl.Series([of[row] for row in cells["id"]], dtype=pl.String))


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread of its own while the one before it is in use."""
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def of_rows(cells: pl.DataFrame, rows: pl.DataFrame, measure: Measure) -> pl.DataFrame:
    """Cells with what they are `of`: the texts of these rows of the pool's frame."""
    of = rows.select("id", of=measure.of)
    return cells.join(of, on="id", how="left", maintain_order="left")


def _texts_for(name: str, measures: Measures) -> frozenset[str]:
    """The long texts that a cell of a measure needs."""
    unread = {"thinking"} if name == "sanitized" else {"thinking", "raw_instruction"}
    known = [measures.table[m].columns for m in ("text", *measures.prerequisites(name))]
    return measures.long_columns(column for columns in known for column in columns) - unread


def _count(
    counts: Counts,
    name: str,
    batches: Iterable[tuple[pl.DataFrame, int]],
    column: Column,
    log: Log,
) -> None:
    """Add cells, seconds and failures by reason to the measure's counts as batches come; the
    seconds are kept beside the column too."""
    entry = counts.setdefault(name, {"cells": 0, "seconds": 0.0, "failed": {}})
    started, done, told = time.monotonic(), 0, 0.0
    with filling(column.folder) as made:
        for cells, total in batches:
            made(len(cells))
            done += len(cells)
            entry["cells"] += len(cells)
            if "status" in cells.columns:
                reasons = cells.filter(pl.col("status") == FAILED)["reason"]
                entry["failed"] = dict(Counter(entry["failed"]) + Counter(reasons.to_list()))
            log.progress(done, total)
            if done == total or time.monotonic() - told >= 1:
                told = time.monotonic()
                log.metrics({f"{name}/cells": float(entry["cells"])})
    entry["seconds"] = round(entry["seconds"] + time.monotonic() - started, 2)


_PROMPTS = (
    "the recipe has no `eval` with prompts to compare with; add one, "
    "or name a file in `synth.tags.decontaminate`"
)
_HOW = {
    "reward": "add `synth.tags.reward: {model: ...}`",
    "reward_difference": "add `synth.tags.base: {model: ...}` and `synth.tags.reward`",
    "base_response": "add `synth.tags.base: {model: ...}`, the base model that is to answer",
    "safety": "add `synth.tags.safety: {model: ...}`",
    "overlap": _PROMPTS,
    "eval_distance": _PROMPTS,
    "superfilter": "add `synth.tags.superfilter: {model: ...}`, a small model",
    "rip": "add `synth.preferences`, whose answers and rewards it is about",
    "fit": "add `train`: it is the fit to the model that is fine-tuned",
    "sanitized": "add `synth.sanitize: gemma` or `llama-3`",
}


def check(pool: Pool, rules: Sequence[Rule], besides: Collection[str] = ()) -> None:
    """Find out before anything is bought whether a drawn pool can measure what the filters read,
    and what that needs first.

    Imported rows may hold anything, so nothing is said of them. `besides`: measures that are known
    to be possible later. Raises UserError.
    """
    if pool.imported:
        return
    for rule in rules:
        measures = rule.measures
        needed = measures.filling(rule.columns)
        for name in needed:
            needed += [first for first in measures.prerequisites(name) if first not in needed]
        for name in sorted(needed, key=measures.by_cost().index):
            if name not in pool.cells and name not in (*besides, "turns"):
                raise UserError(f"arms.{rule.name}: {_unmeasurable(name, measures)}")


def _unmeasurable(name: str, measures: Measures) -> str:
    columns = ", ".join(measures.table[name].columns)
    how = _HOW.get(name, "it can only come from imported rows that hold it")
    return (
        f"a filter asks for a column of '{name}' ({columns}) "
        f"which this recipe gives no way to measure; {how}."
    )
