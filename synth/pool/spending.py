"""What the cells of a pool cost: tokens, seconds, and of hosted models what they were paid and are
like to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from core.cells.seconds import took
from core.columns import Column
from core.sending.chat import most_tokens
from core.sending.purse import Bill
from synth.config.models import ModelConfig
from synth.config.rows import ImportConfig
from synth.config.synthesis import SynthConfig
from synth.filters.rule import Rule
from synth.measures import MEASURES
from synth.pool.pool import Pool

GUESS = 300
"""Tokens of a prompt before any was counted."""


def asked(config: SynthConfig, measure: str) -> ModelConfig | None:
    """The model that a measure asks for texts; None where it asks none."""
    tags = config.tags
    if measure == "response":
        return config.responder or config.teacher
    if measure in tags.own:
        own = tags.own[measure]
        return None if own.prompt is None else own.model or config.teacher
    if measure in MEASURES and MEASURES[measure].asks:
        return getattr(tags, measure).model or config.teacher
    return tags.safety if measure == "safety" else None


def forecast(pool: Pool, wants: Mapping[str, Sequence[str]]) -> str:
    """About what the cells that are wanted will cost, measure by measure; "" where no model with
    prices is asked. By the mean tokens of the cells so far, else at most by max_tokens."""
    said = []
    for measure, ids in wants.items():
        model = asked(pool.config, measure)
        if model is not None and model.prices is not None and ids:
            said.append(_estimate(pool, measure, model, len(ids)))
    return "; ".join(said)


def before(config: SynthConfig) -> str:
    """The most that the answers of a pool can cost, before its rows are there; "" where that is not
    known."""
    model = asked(config, "response")
    rows = config.rows.limit if isinstance(config.rows, ImportConfig) else config.rows
    if model is None or model.prices is None or rows is None:
        return ""
    return _at_most(config, "response", model, rows)


def _estimate(pool: Pool, measure: str, model: ModelConfig, cells: int) -> str:
    bought = pool.spent(measure, pool.drawn()["id"]) if measure in pool.columns else None
    known = bought.drop_nulls() if bought is not None else pl.DataFrame()
    if known.is_empty() or model.prices is None:
        return _at_most(pool.config, measure, model, cells)
    read, made = (float(known[name].sum()) / len(known) for name in ("prompt_tokens", "tokens"))
    money = model.prices.cost(cells * read, cells * made)
    return (
        f"{measure} by {model.model}: about {money:.4g} in money (an estimate: {cells:,} x "
        f"{read:.0f} + {made:.0f} tokens, the mean of {len(known):,})"
    )


def _at_most(config: SynthConfig, measure: str, model: ModelConfig, cells: int) -> str:
    """A sentence for a model of which nothing was counted yet."""
    sampling = config.response if measure == "response" else {}
    if measure == "response" and config.responses is not None:
        sampling, cells = config.best_of_sampling, cells * config.responses.n
    if measure in MEASURES and MEASURES[measure].asks:
        sampling = {"max_tokens": 600, **getattr(config.tags, measure).sampling}
    elif measure in config.tags.own:
        sampling = {"max_tokens": 600, **config.tags.own[measure].sampling}
    most = most_tokens(sampling)
    money = model.prices.cost(cells * GUESS, cells * most) if model.prices else 0.0
    limit = f"up to {most:,}" if most else "an unknown number of"
    return (
        f"{measure} by {model.model}: at most about {money:.4g} in money (an estimate: {cells:,} "
        f"requests of about {GUESS} tokens read and {limit} generated; none was answered yet)"
    )


def lines(bills: Mapping[str, Bill]) -> list[str]:
    """What was paid so far, a sentence a model."""
    return [
        f"{model}: {bill.calls:,} requests answered, {bill.prompt_tokens:,} tokens read, "
        f"{bill.tokens:,} generated, {bill.money:.4g} in money so far"
        for model, bill in sorted(bills.items())
    ]


def cost(
    pool: Pool, rules: Sequence[tuple[Rule, Iterable[str]]], frame: pl.DataFrame
) -> dict[str, Any]:
    """What the pool cost in generated tokens and in seconds, and what answering and tagging every
    row first would have cost in tokens.

    `rules`: each filter with the ids it chose. The avoided tokens are the unmeasured cells times
    the mean of the measured ones, so they are an estimate; the tokens spent are counted.
    """
    columns = list(_columns(pool, frame))
    total = sum(c["tokens"] for c in columns)
    naive = columns[0]["tokens"] + sum(
        round(c["tokens"] / c["cells"] * len(frame)) for c in columns[1:]
    )
    kept = {i for _, chosen in rules for i in chosen}
    each = {"cost_per_kept_row": total, "naive_cost_per_kept_row": naive}
    return {
        "columns": columns,
        "tokens_spent": total,
        "naive_tokens": naive,
        "tokens_avoided": naive - total,
        "rows_pool": len(frame),
        "rows_answered": sum(c["cells"] for c in columns if c["name"] == "response"),
        "rows_kept": len(kept),
        **{name: round(tokens / len(kept), 1) if kept else None for name, tokens in each.items()},
    }


def _columns(pool: Pool, frame: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """What each column cost that holds cells of this pool which were made here: the instructions,
    then what was measured."""
    drawn = pool.drawn().select("id", "tokens", prompt_tokens=pl.lit(0))
    yield _spent("instruction", drawn, seconds_of(pool.instruction, drawn["id"]))
    for name in pool.computed:
        column = pool.column(name, frame)
        if column is None or not column.folder.is_dir():
            continue
        cells = pool.spent(name, frame["id"]) if name in pool.columns else None
        if cells is None:
            cells = _of_pool(column, frame["id"])
        if len(cells):
            yield _spent(name, cells, seconds_of(column, frame["id"]))


def seconds_of(column: Column, ids: pl.Series) -> dict[str, float | None]:
    """`seconds` that the cells of these rows took, their share of those of the whole column, which
    other recipes may have filled too; `untimed`: the share of the cells that were made by a version
    that kept no seconds, or just before a kill, and are not in them. All of them: None and 1."""
    known = took(column.folder)
    if known is None:
        return {"seconds": None, "untimed": 1.0}
    cells = column.read(names=[])
    share = len(cells.filter(pl.col("id").is_in(ids.implode()))) / max(len(cells), 1)
    untimed = max(0.0, 1 - known.cells / max(len(cells), 1))
    return {"seconds": round(known.seconds * share, 3), "untimed": round(untimed, 4)}


def _of_pool(column: Column, ids: pl.Series) -> pl.DataFrame:
    """Cells of these rows in a column that costs no tokens: [id, tokens, prompt_tokens]."""
    cells = column.read(ids, ["id"]).select("id")
    return cells.with_columns(tokens=pl.lit(0), prompt_tokens=pl.lit(0))


def _spent(name: str, cells: pl.DataFrame, seconds: Mapping[str, float | None]) -> dict[str, Any]:
    """What the cells of a column cost, from their [tokens, prompt_tokens]."""
    tokens = {n: int(cells[n].sum() or 0) for n in ("tokens", "prompt_tokens")}
    return {"name": name, "cells": len(cells), **tokens, **seconds}
