"""What hosted models have cost an experiment, and about what they will cost it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from core.sending.chat import most_tokens
from core.sending.purse import Bill
from synth.config.models import ModelConfig
from synth.config.rows import ImportConfig
from synth.config.synthesis import SynthConfig
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
