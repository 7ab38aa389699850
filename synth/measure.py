"""Computing cells: draw the instructions, then whatever the schedule wants next, until every arm can choose.

`draw` and `measure` append finished cells to the pool's columns as they arrive, so a killed run continues where it stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import polars as pl

from core.columns import FAILED, Column
from core.endpoint import Endpoint, Servers, ServerSpec
from core.models import Model, resolve, tokenizer
from core.store import Counts, canonical, digest
from core.tracking import Log
from synth import generate, language, neighbors, published, tags, templates
from synth.config import MEASURES, ImportConfig, ModelConfig
from synth.filters import Filter
from synth.pool import FIELDS_OF, Pool, digest_texts
from synth.schedule import TokenCounter, wanted


def spec_of(config: ModelConfig) -> tuple[Model, ServerSpec]:
    """The resolved model and the server that it is to be asked through."""
    model = resolve(config.model, config.revision)
    block = dict(config.server)
    if config.revision:
        block["args"] = {"revision": config.revision, **block.get("args", {})}
    return model, ServerSpec(model=model.path, **block)


def draw(pool: Pool, servers: Servers, log: Log) -> Counts:
    """Fill the pool's instructions: generate the missing ones, or import them. Returns rows, failures by reason and tokens (of the whole pool)."""
    config = pool.config
    if isinstance(config.rows, ImportConfig):
        if pool.drawn().is_empty():
            _import(pool, config.rows, log)
    else:
        missing = pool.missing_instructions()
        if len(missing):
            model, spec = spec_of(config.teacher)
            overrides = {"text": config.pre_query_template} if config.pre_query_template else None
            prompt = templates.pre_query(tokenizer(model.path), config.system_prompt, overrides)
            sampling = {k: v for k, v in config.instruction.items() if k != "seed"}
            constant = {
                "sampling": canonical(config.instruction), "model": model.name, "revision": model.revision, "template": digest(prompt.token_ids)[:16],
                "temperature": config.instruction.get("temperature"), "top_p": config.instruction.get("top_p"),
            }  # fmt: skip
            done = config.rows - len(missing)
            log.progress(done, config.rows)
            for part in generate.instructions(missing.select("id", "seed"), prompt, sampling, servers.serve(spec)):
                known = part.join(missing, on="id", how="left", maintain_order="left")
                pool.instruction.append(known.with_columns([pl.lit(v).alias(k) for k, v in constant.items()]))
                done += len(part)
                log.progress(done, config.rows)
    drawn = pool.drawn()
    failed = drawn.filter(pl.col("status") == FAILED)
    return {"rows": len(drawn), "failed": dict(Counter(failed["reason"].to_list())), "tokens": int(drawn["tokens"].sum() or 0)}


def _import(pool: Pool, source: ImportConfig, log: Log) -> None:
    """Copy published rows and their tags into columns: an absent column is unmeasured, a null in a present one is a failed cell."""
    path = str(source.import_)
    done = 0
    for batch in published.read(path, limit=source.limit):
        frame = batch.with_columns(pl.int_range(done, done + len(batch), dtype=pl.Int64).alias("index"))
        pool.instruction.append(frame.with_columns(pl.lit(path).alias("model")), order=f"{done:012d}")
        texts = digest_texts(frame["instruction"].to_list())
        pairs = _pair_digests(frame)
        for measure, column in pool.imports.items():
            present = [n for n in FIELDS_OF[measure] if n in frame.columns and n not in ("of", "tokens", "prompt_tokens", "finish_reason")]
            if not present:
                continue
            null = pl.col(present[0]).is_null()
            cells = frame.select("id", *present, pl.when(null).then(pl.lit("failed")).otherwise(pl.lit("ok")).alias("status"),
                                 pl.when(null).then(pl.lit("null in the imported data")).alias("reason"))  # fmt: skip
            column.append(cells.with_columns((pairs if _reads_pair(measure) else texts).alias("of")), order=f"{done:012d}")
        done += len(batch)
        log.progress(done, source.limit)


def measure(
    pool: Pool, rules: Sequence[tuple[Filter, Sequence[int]]], servers: Servers, log: Log, tokens: TokenCounter | None = None
) -> Counts:
    """Measure what the arms want, cheapest first, until nothing is wanted. Returns cells, seconds and failures by measure (of this call)."""
    counts: Counts = {}
    while True:
        frame = pool.frame()
        wants = wanted(frame, rules, tokens)
        if not wants:
            return counts
        name, ids = next(iter(wants.items()))
        column = pool.neighbors_column(frame["id"].to_list()) if name == "neighbors" else pool.columns.get(name)
        if column is None:
            _unmeasurable(pool, name)
            continue
        rows = frame if name == "neighbors" else frame.join(pl.DataFrame({"id": ids}), on="id", how="semi", maintain_order="left")
        log.say(f"measuring {name}: {len(rows)} of {len(frame)} rows")
        started, done = time.monotonic(), 0
        entry = counts.setdefault(name, {"cells": 0, "seconds": 0.0, "failed": {}})
        texts = _pair_digests(rows) if _reads_pair(name) else digest_texts(rows["instruction"].to_list())
        of = dict(zip(rows["id"].to_list(), texts.to_list(), strict=True))
        for part in _compute(pool, name, rows, servers):
            fresh = part if name == "neighbors" else part.with_columns(pl.Series("of", [of[i] for i in part["id"].to_list()], dtype=pl.String))
            column.append(fresh)
            done += len(part)
            entry["cells"] += len(part)
            if "status" in part.columns:
                for reason, n in Counter(part.filter(pl.col("status") == FAILED)["reason"].to_list()).items():
                    entry["failed"][reason] = entry["failed"].get(reason, 0) + n
            log.progress(done, len(rows))
            log.metrics({f"{name}/cells": float(entry["cells"])})
        entry["seconds"] = round(entry["seconds"] + time.monotonic() - started, 2)


def _unmeasurable(pool: Pool, name: str) -> None:
    from core.errors import UserError

    columns = ", ".join(MEASURES[name].columns)
    raise UserError(
        f"a filter asks for a column of '{name}' ({columns}) which this recipe gives no way to measure"
        + ("; add `synth.tags.reward: {model: ...}`." if name == "reward" else "; it can only come from imported rows that hold it.")
    )


def _compute(pool: Pool, name: str, rows: pl.DataFrame, servers: Servers) -> Iterator[pl.DataFrame]:
    """Finished cells of one measure, in batches as they arrive."""
    config = pool.config
    if name == "language":
        return iter(language.language(rows.select("id", "instruction"), {"languages": config.tags.languages}))
    if name == "neighbors":
        near = config.tags.neighbors
        vectors = neighbors.embed(rows["instruction"].to_list(), resolve(near.model).path)
        return iter([neighbors.neighbors(rows["id"].to_list(), vectors, near.threshold)])
    if name in tags.TAGS:
        tag = getattr(config.tags, name)
        model, spec = spec_of(tag.model or config.teacher)
        settings = {"mode": tag.mode, "sampling": tag.sampling, "prompt": tag.prompt}
        ask = {"quality": tags.quality, "difficulty": tags.difficulty, "category": tags.category}[name]
        return ask(rows.select("id", "instruction"), settings, tokenizer(model.path), servers.serve(spec))
    if name == "response":
        model, spec = spec_of(config.responder or config.teacher)
        limit = spec.args.get("max_model_len")
        endpoint: Endpoint = servers.serve(spec)
        return generate.responses(rows.select("id", "instruction"), tokenizer(model.path), config.response, endpoint, max_model_len=limit)
    assert name == "reward" and config.tags.reward is not None
    model, spec = spec_of(config.tags.reward)
    return tags.reward(rows.select("id", "instruction", "response"), tokenizer(model.path), servers.serve(spec))


def _reads_pair(measure: str) -> bool:
    return MEASURES[measure].reads == "response" and measure != "response"


def _pair_digests(rows: pl.DataFrame) -> pl.Series:
    responses = rows["response"].to_list() if "response" in rows.columns else [None] * len(rows)
    return digest_texts([f"{i}\0{r}" for i, r in zip(rows["instruction"].to_list(), responses, strict=True)])


def cost(pool: Pool, rules: Sequence[tuple[Filter, Iterable[str]]], frame: pl.DataFrame) -> dict[str, Any]:
    """What the pool cost in generated tokens, and what answering and tagging every row first would have cost.

    `rules`: each filter with the ids it chose. The avoided tokens are the unmeasured cells times the mean of the measured ones, so they are
    an estimate; the tokens spent are counted.
    """
    drawn = pool.drawn()
    drawn_tokens = int(drawn["tokens"].sum() or 0)
    columns: list[dict[str, Any]] = [{"name": "instruction", "cells": len(drawn), "tokens": drawn_tokens, "prompt_tokens": 0}]
    ids = frame["id"].to_list()
    naive = drawn_tokens
    spent_by: dict[str, dict[str, int]] = {}
    for name, column in pool.columns.items():
        cells = _with_tokens(column, ids)
        if cells is None or cells.is_empty():
            continue
        spent = int(cells["tokens"].sum() or 0)
        columns.append({"name": name, "cells": len(cells), "tokens": spent, "prompt_tokens": int(cells["prompt_tokens"].sum() or 0)})
        naive += round(spent / len(cells) * len(frame))
        spent_by[name] = dict(cells.select("id", pl.col("tokens").fill_null(0)).iter_rows())
    total = sum(int(c["tokens"]) for c in columns)
    kept_rows = {i for _, chosen in rules for i in chosen}
    return {
        "columns": columns,
        "tokens_spent": total,
        "naive_tokens": naive,
        "tokens_avoided": naive - total,
        "rows_pool": len(frame),
        "rows_answered": len(spent_by.get("response", {})),
        "rows_kept": len(kept_rows),
        "cost_per_kept_row": round(total / len(kept_rows), 1) if kept_rows else None,
        "naive_cost_per_kept_row": round(naive / len(kept_rows), 1) if kept_rows else None,
    }


def _with_tokens(column: Column, ids: list[str]) -> pl.DataFrame | None:
    return column.read(ids) if "tokens" in column.fields else None
