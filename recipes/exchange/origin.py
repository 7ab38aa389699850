"""Where a recipe's rows come from that were imported: what their source says of them, and what the
recipe measured itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import OK
from synth.config import ImportConfig, SynthConfig
from synth.measures import COLUMNS, MEASURES
from synth.published import rows

WHO = ("quality_generator", "difficulty_generator", "task_category_generator", "reward_model")
_SAMPLING: dict[str, Any] = {
    "temperature": pl.Float64,
    "top_p": pl.Float64,
    "seed": pl.Int64,
    "input_generator": pl.String,
    "pre_query_template": pl.String,
}
_FILLED = dict(
    zip(WHO, ("input_quality", "difficulty", "task_category", "instruct_reward"), strict=True)
)
"""Column that names a model -> the column that this model fills."""

_FOLLOWS = {
    "input_quality_rank": "input_quality",
    "difficulty_rank": "difficulty",
    "near_duplicate": "min_similar_id",
    "safety": "llama_guard_2",
    "turns": "messages",
    **dict.fromkeys(MEASURES["response"].columns, "response"),
}
"""Column that the software works out -> the column of the source that it follows from."""


def told(source: ImportConfig, snapshot: Path) -> pl.DataFrame:
    """What the source says of the snapshot's rows: [id, model, gen_input_config, *WHO, has: list of
    the columns that a row has a value of].

    Null where it says nothing. Raises UserError when the source cannot be read any more.
    """
    names = [c for c in pl.read_parquet_schema(snapshot) if c in COLUMNS]
    parts = []
    for frame in rows.read(source.import_, source.limit):
        config = frame.schema.get("gen_input_config")
        known = {f.name for f in config.fields} if isinstance(config, pl.Struct) else set()
        field = {
            n: pl.col("gen_input_config").struct.field(n) if n in known else pl.lit(None)
            for n in _SAMPLING
        }
        sampling = pl.struct(
            [field[n].cast(kind, strict=False).alias(n) for n, kind in _SAMPLING.items()]
        ).alias("gen_input_config")
        who = [
            (pl.col(n) if n in frame.columns else pl.lit(None)).cast(pl.String).alias(n)
            for n in ("model", *WHO)
        ]
        held = [
            pl.when(pl.col(n).is_not_null()).then(pl.lit(n)) for n in names if n in frame.columns
        ]
        parts.append(
            frame.select("id", sampling, *who, pl.concat_list(held).list.drop_nulls().alias("has"))
        )
    return pl.concat(parts)


def with_origin(
    frames: Iterator[pl.DataFrame], told: pl.DataFrame, measurers: Mapping[str, tuple[str, str]]
) -> Iterator[pl.DataFrame]:
    """Rows in our form, with models and sampling as the source tells them; the recipe's own models
    only where a cell is the recipe's.

    `measurers`: column that names a model -> (the column that this model fills, its name), as the
    recipe has it.
    """
    for frame in frames:
        ours = frame.drop("model", "gen_input_config", *WHO, strict=False).join(
            told, on="id", how="left", maintain_order="left"
        )
        for column, (tag, model) in {
            n: measurers.get(n, (t, None)) for n, t in _FILLED.items()
        }.items():
            if tag in frame.columns:
                own = ~pl.col("has").list.contains(tag)
                who = pl.when(own).then(pl.lit(model, pl.String)).otherwise(column)
                ours = ours.with_columns(pl.when(pl.col(tag).is_not_null()).then(who).alias(column))
        yield ours.select(
            *[c for c in frame.columns if c in ours.columns],
            *[c for c in ours.columns if c not in frame.columns and c != "has"],
        )


def provenance(synth: SynthConfig, snapshot: Path, told: pl.DataFrame) -> dict[str, Any]:
    """Facts for the card, by name: the source, and what of the answered rows was measured by the
    recipe, with the models that wrote texts."""
    assert isinstance(synth.rows, ImportConfig)
    path = Path(synth.rows.import_).expanduser()
    lazy = pl.scan_parquet(snapshot).filter(pl.col("status:response") == OK)
    none = ("text", "turns") if synth.turns == 1 else ("text",)
    names = [c for c in lazy.collect_schema() if c in COLUMNS and COLUMNS[c][0] not in none]
    filled = (
        lazy.select("id", *[pl.col(n).is_not_null() for n in names])
        .collect()
        .join(told.select("id", "has"), on="id", how="left")
    )
    has = {
        n: pl.any_horizontal(
            pl.col("has").list.contains(k).fill_null(False) for k in (n, _FOLLOWS.get(n, n))
        )
        for n in names
    }
    mine = filled.select([(pl.col(n) & ~has[n]).any() for n in names]).row(0, named=True)
    measures = {
        COLUMNS[n][0] for n in names if mine[n]
    }  # what fills one column fills all of its measure
    measured = [n for n in names if COLUMNS[n][0] in measures and filled[n].any()]
    answered, continued = "response" in measured, synth.turns > 1 and "messages" in measured
    return {
        "rows imported from": path.name if path.exists() else synth.rows.import_,
        "columns measured by this recipe": ", ".join(measured) or "none",
        "responder": (synth.responder or synth.teacher).model if answered or continued else None,
        "sampling of responses": synth.response if answered or continued else None,
        "model of the further turns": synth.teacher.model if continued else None,
        "embeddings for neighbour distances": synth.tags.neighbors.model
        if "min_neighbor_distance" in measured
        else None,
    }
