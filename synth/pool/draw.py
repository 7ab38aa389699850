"""Filling a pool with instructions: drawn from the teacher, or imported.

Finished draws are appended as they arrive, so a killed run continues where it stopped, and a draw
that failed is followed by another for its place, so the pool has as many instructions as were asked
for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import polars as pl

from core.columns import FAILED, OK
from core.files import write_atomic
from core.servers import Servers
from core.store import Counts, canonical, digest
from core.tracking import Log
from synth.chat.families import system_prompt_of
from synth.chat.pre_query import PreQuery, pre_query
from synth.chat.thinking import thinking_of
from synth.config import ImportConfig
from synth.generate import single_turn
from synth.generate.first_token import first_token
from synth.generate.sampling_grid import DRAWS
from synth.generate.system_prompts import Steered, chosen, steered
from synth.measures import MEASURES
from synth.pool.category_balance import Balance
from synth.pool.computed import COMPUTED
from synth.pool.pool import INSTRUCTION_FIELDS, Pool
from synth.pool.short_columns import digest_pairs, digest_texts
from synth.published import rows as published

Share = tuple[int, int]
"""(rank, world): this task's part of the rows when many machines fill one pool."""


def draw(pool: Pool, servers: Servers, log: Log, share: Share = (0, 1)) -> Counts:
    """Fill the pool's instructions: generate what is missing, or import them.

    Returns usable rows, failed draws by reason and tokens (of the whole pool).
    """
    source = pool.config.rows
    if isinstance(source, ImportConfig):
        if pool.to_import():
            _import(pool, source, log)
    else:
        _generate(pool, servers, log, share)
    if share == (0, 1):
        pool.instruction.compact()
    drawn = pool.drawn()
    failed = drawn.filter(pl.col("status") == FAILED)
    rows = len(drawn) - len(failed)
    if isinstance(source, int) and share == (0, 1) and rows < source:
        log.say(
            f"{source - rows} of {source} instructions could not be had in {DRAWS} draws each; see the reasons in {pool.instruction.folder}"
        )
    return {
        "rows": rows,
        "failed": dict(Counter(failed["reason"].to_list())),
        "tokens": int(drawn["tokens"].sum() or 0),
    }


def _generate(pool: Pool, servers: Servers, log: Log, share: Share) -> None:
    """Draw this task's places until each has an instruction or has failed too often."""
    config = pool.config
    due = mine(pool.missing_instructions(), share)
    if due.is_empty():
        return
    context = pool.context.serving(servers)
    served = context.serve(config.teacher)
    words = served.tokenizer
    prompts = steered(config.system_prompts)
    texts = [p.text for p in prompts] or [
        system_prompt_of(config.teacher.model, config.system_prompt)
    ]
    templates = [pre_query(words, text, config.pre_query_template) for text in texts]
    samplings = [
        {k: v for k, v in sampling.items() if k != "seed"}
        for sampling in pool.plan.sampling(config.instruction)
    ]
    rule = (
        first_token(words, config.first_token.suppress, config.first_token.temperature)
        if config.first_token
        else None
    )
    facts = _facts(pool.plan.sampling(config.instruction), templates, prompts)
    model = {"model": served.model.name, "revision": served.model.revision}
    balance = (
        Balance(pool, context, log, config.category_balance) if config.category_balance else None
    )
    total = len(mine(pool.planned, share))
    done = total - due["place"].n_unique()
    log.progress(done, total)
    while len(due):
        due = due.with_columns(
            pl.Series(
                "prompt",
                chosen(due["id"].to_list(), prompts) if prompts else [0] * len(due),
                dtype=pl.Int64,
            )
        )
        for part in single_turn.instructions(
            due, templates, samplings, served.endpoint, first=rule, thinking=thinking_of(words)
        ):
            known = part.join(due, on="id", how="left", maintain_order="left").join(
                facts, on=["cell", "prompt"], how="left", maintain_order="left"
            )
            pool.instruction.append(
                known.with_columns([pl.lit(v).alias(k) for k, v in model.items()])
            )
            done += int((part["status"] == OK).sum())
            log.progress(done, total)
            if balance:
                balance.drawn(part)
        due = mine(pool.missing_instructions(), share)


def _facts(
    samplings: list[dict[str, Any]], templates: list[PreQuery], prompts: list[Steered]
) -> pl.DataFrame:
    """What is recorded with each row of a cell and a prompt: [cell, prompt, sampling, temperature,
    top_p, template, system_prompt]."""

    def number(sampling: Mapping[str, Any], name: str) -> float | None:
        return None if sampling.get(name) is None else float(sampling[name])

    return pl.DataFrame(
        [
            {
                "cell": c,
                "prompt": p,
                "sampling": canonical(sampling),
                "temperature": number(sampling, "temperature"),
                "top_p": number(sampling, "top_p"),
                "template": digest(template.token_ids)[:16],
                "system_prompt": prompts[p].name if prompts else None,
            }
            for c, sampling in enumerate(samplings)
            for p, template in enumerate(templates)
        ],
        schema_overrides={
            "temperature": pl.Float64,
            "top_p": pl.Float64,
            "system_prompt": pl.String,
        },
    )


def mine(rows: pl.DataFrame, share: Share) -> pl.DataFrame:
    """This task's rows [id, ...] of many tasks': by the id alone (of its place, for draws), so that
    it never depends on what is missing."""
    rank, world = share
    if world == 1:
        return rows
    places = rows["place" if "place" in rows.columns else "id"].to_list()
    return rows.filter(
        pl.Series([int(digest(i)[:8], 16) % world == rank for i in places], dtype=pl.Boolean)
    )


def _imported(batch: pl.DataFrame) -> pl.DataFrame:
    """Published rows with what their sampling struct and their conversations say as columns of
    ours."""
    said = pl.col("messages").list.eval(pl.element().struct.field("role") == "user").list.sum()
    batch = batch.with_columns(said.cast(pl.Int64).alias("turns"))
    config = batch.schema.get("gen_input_config")
    known = {f.name for f in config.fields} if isinstance(config, pl.Struct) else set()
    sampling = [n for n in ("temperature", "top_p") if n in known and n not in batch.columns]
    return batch.with_columns(
        [pl.col("gen_input_config").struct.field(n).cast(pl.Float64).alias(n) for n in sampling]
    )


def _typed(frame: pl.DataFrame, fields: Mapping[str, Any]) -> pl.DataFrame:
    """[id, those of the fields that the frame has, status, reason] in our types.

    A value of another kind is null; a column of another kind altogether, which only shares a name
    of ours, is left out.
    """
    kept = [frame["id"]]
    for name, dtype in fields.items():
        if name in frame.columns:
            with suppress(pl.exceptions.PolarsError):
                kept.append(frame[name].cast(dtype, strict=False))
    return pl.DataFrame([*kept, *(frame[n] for n in ("status", "reason") if n in frame.columns)])


def _import(pool: Pool, source: ImportConfig, log: Log) -> None:
    """Copy published rows and their tags into columns: an absent column is unmeasured, a null in a
    present one is a failed cell.

    One that was killed begins again: what it had copied is then there twice, and alike, which
    columns allow.
    """
    path = str(source.import_)
    done = 0
    for batch in published.read(path, limit=source.limit):
        frame = _imported(batch).with_columns(
            pl.int_range(done, done + len(batch), dtype=pl.Int64).alias("index")
        )
        model = pl.coalesce("model", pl.lit(path)) if "model" in frame.columns else pl.lit(path)
        # Tokens of a published set are not what this pool cost.
        drawn = {n: d for n, d in INSTRUCTION_FIELDS.items() if n != "tokens"}
        pool.instruction.append(
            _typed(frame.with_columns(model.alias("model")), drawn), order=f"{done:012d}"
        )
        texts = digest_texts(frame["instruction"].to_list())
        pairs = (
            digest_pairs(texts, digest_texts(frame["response"].to_list()))
            if "response" in frame.columns
            else texts
        )
        for measure, column in pool.imports.items():
            fields = {
                n: d
                for n, d in COMPUTED[measure].fields.items()
                if n not in ("tokens", "prompt_tokens", "finish_reason")
            }
            typed = _typed(frame.drop("status", "reason"), fields)
            present = typed.columns[1:]
            if not present:
                continue
            null = pl.col(present[0]).is_null()
            cells = typed.with_columns(
                pl.when(null).then(pl.lit("failed")).otherwise(pl.lit("ok")).alias("status"),
                pl.when(null).then(pl.lit("null in the imported data")).alias("reason"),
            )
            cells = cells.with_columns(
                (pairs if MEASURES[measure].reads == "response" else texts).alias("of")
            )
            if (
                measure == "turns"
                # instruction and response alone are no failed conversation: they may still be
                # continued
            ):
                cells = cells.filter(pl.col("messages").is_not_null())
            column.append(cells, order=f"{done:012d}")
        done += len(batch)
        log.progress(done, source.limit)
    write_atomic(pool.import_marker, json.dumps({"limit": source.limit}))
