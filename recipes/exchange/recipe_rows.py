"""Rows of a finished recipe in our published-set form: the pool's snapshot, or what one arm chose
of it, with every column that was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from core.columns import OK
from core.errors import UserError, nearest
from recipes.exchange import origin
from recipes.schema import Loaded, Recipe, with_random
from recipes.stages.session import environment
from synth.config import ImportConfig, TagConfig
from synth.measures import COLUMNS
from synth.published import rows as published
from synth.published.forms import NAMES


@dataclass(frozen=True)
class Export:
    """Rows in our form, what the card calls them, and where they come from."""

    name: str
    frames: Iterator[pl.DataFrame]
    provenance: dict[str, Any]
    reads: str | None = None
    """The data that a recipe names and the rows are read from, where they are not its pool's
    own."""


def of_recipe(loaded: Loaded, arm: str | None, seed: int | None) -> Export:
    """The answered rows of the pool (`arm` None), or those that an arm chose (`seed`: which sample
    of a seeded arm; default the first).

    Rows come in the order of the pool. Raises UserError for an unknown arm, a finished model, and
    what is not made yet.
    """
    recipe = loaded.recipe
    arms = with_random(recipe)
    if arm is not None and arm not in arms:
        raise UserError(f"--arm {arm}: recipe {recipe.name} has no such arm{nearest(arm, arms)}.")
    if arm is not None and arms[arm].model is not None:
        raise UserError(f"--arm {arm}: this arm is a finished model, so it has no rows to export.")
    folder = Path(recipe.store) / "recipes" / recipe.name
    name = f"{recipe.name}-{arm}" if arm else recipe.name
    if arm is not None and (data := arms[arm].data) is not None:
        return Export(
            name,
            _kept(published.read(data), _ids_of_data(loaded, arm, seed)),
            {"source": data, "recipe": _text(recipe)},
            data,
        )
    snapshot = folder / "measure" / "pool.parquet"
    source = recipe.synth.rows
    if not snapshot.is_file():
        raise UserError(
            f"recipe {recipe.name} has no finished pool at {snapshot}; `magpie run {loaded.source.path} --until select` makes it."
        )
    chosen, funnel = _selection(folder / "select" / arm, loaded, seed) if arm else (None, None)
    if isinstance(source, ImportConfig):
        told = origin.told(source, snapshot)
        facts = origin.provenance(recipe.synth, snapshot, told)
        frames = origin.with_origin(_rows(recipe, snapshot), told, _measurers(recipe))
        return Export(
            name,
            _kept(frames, chosen),
            {**facts, **_software(), "funnel": funnel, "recipe": _text(recipe)},
            source.import_,
        )
    provenance = {
        **_provenance(recipe, snapshot),
        **_software(),
        "funnel": funnel,
        "recipe": _text(recipe),
    }
    return Export(name, _kept(_rows(recipe, snapshot), chosen), provenance)


def _selection(folder: Path, loaded: Loaded, seed: int | None) -> tuple[pl.Series, dict[str, Any]]:
    seeds = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if seeds:
        wanted = str(seed) if seed is not None else seeds[0]
        if wanted not in seeds:
            raise UserError(
                f"--seed {wanted}: {folder.name} was drawn for the seeds {', '.join(seeds)}."
            )
        folder = folder / wanted
    if not (folder / "selection.parquet").is_file():
        raise UserError(
            f"the arm's selection is not made yet ({folder}); `magpie run {loaded.source.path} --until select` makes it."
        )
    return pl.read_parquet(folder / "selection.parquet", columns=["id"])["id"], json.loads(
        (folder / "funnel.json").read_text()
    )


def _ids_of_data(loaded: Loaded, arm: str, seed: int | None) -> pl.Series:
    """Which rows of someone else's data an arm took."""
    from recipes.stages import graph

    results = graph.plan(loaded).results
    made = [name for name in results if name.startswith(f"select/{arm}/")]
    name = f"select/{arm}/{seed}" if seed is not None else next(iter(made), "")
    if name not in results:
        raise UserError(
            f"the selection of arm {arm} is not made yet; `magpie run {loaded.source.path} --until select` makes it."
        )
    return pl.read_parquet(results[name].path / "selection.parquet", columns=["id"])["id"]


def _kept(frames: Iterator[pl.DataFrame], ids: pl.Series | None) -> Iterator[pl.DataFrame]:
    for frame in frames:
        kept = frame if ids is None else frame.filter(pl.col("id").is_in(ids.implode()))
        if len(kept):
            yield kept


def _rows(recipe: Recipe, snapshot: Path) -> Iterator[pl.DataFrame]:
    """The answered rows of a snapshot in our form: named columns, who measured what, and every
    other measured column."""
    import pyarrow.parquet as pq

    lazy = pl.scan_parquet(snapshot)
    schema, rows = lazy.collect_schema(), int(lazy.select(pl.len()).collect().item())
    nulls = lazy.select(pl.all().null_count()).collect().row(0, named=True)
    inside = ("temperature", "top_p", "seed")
    extras = [
        c
        for c in schema
        if c in COLUMNS and c not in NAMES and c not in (*inside, "messages") and nulls[c] < rows
    ]
    extras += ["heldout"] if recipe.synth.heldout else []
    named = [c for c in NAMES if c in schema]
    for part in pq.ParquetFile(snapshot).iter_batches(batch_size=published.BATCH):
        frame = pl.DataFrame(pl.from_arrow(part)).filter(pl.col("status:response") == OK)
        config = pl.struct(*_config(recipe, frame)).alias("gen_input_config")
        who = [
            pl.when(pl.col(tag).is_not_null()).then(pl.lit(model)).alias(n)
            for n, (tag, model) in _measurers(recipe).items()
            if tag in schema
        ]
        messages = [pl.col("messages")] if "messages" in schema else []
        values = [_value(c, schema[c]) for c in (*named, *extras)]
        ours = frame.select(*values, config, *who, *messages)
        trouble = pl.lit(
            [], pl.List(pl.Struct({"column": pl.String, "reason": pl.String, "value": pl.String}))
        ).alias("failed_tags")
        yield ours.with_columns(
            pl.lit(OK).alias("status"), pl.lit(None, pl.String).alias("reason"), trouble
        )


def _value(name: str, kind: pl.DataType) -> pl.Expr:
    return (
        pl.col(name).cast(pl.String)
        if isinstance(kind, (pl.Enum, pl.Categorical))
        else pl.col(name)
    )


def _config(recipe: Recipe, frame: pl.DataFrame) -> list[pl.Expr]:
    """The fields of gen_input_configs that our columns know."""
    known = {"temperature": pl.Float64, "top_p": pl.Float64, "seed": pl.Int64}
    sampling = [
        (pl.col(n) if n in frame.columns else pl.lit(None)).cast(t).alias(n)
        for n, t in known.items()
    ]
    template = pl.lit(recipe.synth.pre_query_template, pl.String).alias("pre_query_template")
    return [*sampling, pl.col("model").alias("input_generator"), template]


def _measurers(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """Column that names a model -> (the column that this model filled, its name)."""
    tags = recipe.synth.tags

    def tagger(tag: TagConfig) -> str:
        return (tag.model or recipe.synth.teacher).model

    named = {
        "quality_generator": ("input_quality", tagger(tags.quality)),
        "difficulty_generator": ("difficulty", tagger(tags.difficulty)),
        "task_category_generator": ("task_category", tagger(tags.category)),
    }
    return (
        {**named, "reward_model": ("instruct_reward", tags.reward.model)} if tags.reward else named
    )


def _provenance(recipe: Recipe, snapshot: Path) -> dict[str, Any]:
    """Facts for the card, by name."""
    synth = recipe.synth
    lazy = pl.scan_parquet(snapshot)
    schema = lazy.collect_schema()
    cells = (
        lazy.group_by("temperature", "top_p")
        .agg(pl.len().alias("rows"))
        .sort("rows", descending=True)
        .collect()
    )
    unique = {
        n: lazy.select(pl.col(n).drop_nulls().unique().sort()).collect()[n].to_list()
        for n in ("revision", "template")
        if n in schema
    }
    near = (
        synth.tags.neighbors.model
        if lazy.select(pl.col("min_neighbor_distance").is_not_null().any()).collect().item()
        else None
    )
    return {
        "teacher": synth.teacher.model,
        "revision of the teacher": ", ".join(unique.get("revision", [])),
        "digest of the pre-query template's token ids": ", ".join(unique.get("template", [])),
        "instructions drawn, by sampling": cells.to_dicts(),
        "system prompt": synth.system_prompt,
        "responder": synth.responder.model if synth.responder else None,
        "sampling of responses": synth.response,
        "embeddings for neighbour distances": near,
    }


def _software() -> dict[str, Any]:
    return {
        "git commit of the software": environment()["git"],
        "versions": environment()["versions"],
    }


def _text(recipe: Recipe) -> str:
    """The recipe as YAML: what differs from the defaults, without where it ran."""
    shown = recipe.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude={"store", "track", "project"}
    )
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).strip()
