"""Rows of a finished recipe in our published-set form: the pool's snapshot, or what one arm chose
of it, with every column that was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from core.cells.kept import look
from core.columns import OK
from core.errors import UserError, nearest
from core.files import read_json
from recipes.exchange import origin, other_rows
from recipes.exchange.other_rows import Export
from recipes.schema import Loaded, Recipe, with_random
from recipes.stages.environment import environment
from recipes.stages.synthesis import SCORES
from synth.config.models import ModelConfig
from synth.config.rows import ImportConfig
from synth.filters.arm import ArmConfig
from synth.measures import GENERATORS
from synth.published.forms import PUBLISHED, TROUBLE, or_null
from synth.published.rows import BATCH
from synth.tags.asking.own import measures


def of_recipe(loaded: Loaded, arm: str | None, seed: int | None) -> Export:
    """The answered rows of the pool (`arm` None), or those that an arm chose (`seed`: which sample
    of a seeded arm; default the first).

    Rows come in the order of the pool. Raises UserError for an unknown arm, a finished model, and
    what is not made yet.
    """
    recipe = loaded.recipe
    config = _arm(recipe, arm)
    of_arm = (f"select/{arm}",) if arm else ()
    look(Path(recipe.store), recipe.name, only=("measure", *of_arm))
    if arm is not None and config is not None and config.kind != "pool":
        place = _folder(recipe.folder / "select" / arm, loaded, seed)
        export = other_rows.of_arm(loaded, arm, config, place, of_recipe)
        kept = place / "funnel.json"
        funnel = read_json(kept) if kept.is_file() else None
        facts = {**export.provenance, "recipe": _text(recipe), "funnel": funnel}
        return replace(export, provenance=facts)
    name = f"{recipe.name}-{arm}" if arm else recipe.name
    folder = Path(recipe.store) / "recipes" / recipe.name
    snapshot = folder / "measure" / "pool.parquet"
    if not snapshot.is_file():
        raise UserError(
            f"recipe {recipe.name} has no finished pool at {snapshot}; {_makes(loaded)}"
        )
    frames = _rows(recipe, snapshot)
    chosen = funnel = None
    if arm is not None:
        place = _folder(folder / "select" / arm, loaded, seed)
        chosen, funnel = _ids(place / "selection.parquet"), read_json(place / "funnel.json")
        frames = _scored(frames, place / SCORES)
    source = recipe.synth.rows
    reads: tuple[str, ...] = ()
    if isinstance(source, ImportConfig):
        told = origin.told(recipe.synth, source, snapshot)
        facts = origin.provenance(recipe.synth, source, snapshot, told)
        frames = origin.with_origin(frames, told, _generators(recipe))
        reads = (source.import_,)
    else:
        facts = _provenance(recipe, snapshot)
    software = environment()
    facts |= {
        "git commit of the software": software["git"],
        "versions": software["versions"],
        "funnel": funnel,
        "recipe": _text(recipe),
    }
    return Export(name, _kept(frames, chosen), facts, reads)


def _arm(recipe: Recipe, arm: str | None) -> ArmConfig | None:
    """What the recipe says of an arm; None where the whole pool is meant. Raises UserError for an
    arm that has no rows."""
    if arm is None:
        return None
    arms = with_random(recipe)
    if arm not in arms:
        raise UserError(f"--arm {arm}: recipe {recipe.name} has no such arm{nearest(arm, arms)}.")
    if arms[arm].kind in ("model", "dpo"):
        raise UserError(f"--arm {arm}: this arm is a model, so it has no rows to export.")
    if arms[arm].of is not None:
        raise UserError(
            f"--arm {arm}: this arm is a control with wrong answers; export '{arms[arm].of}', "
            "whose rows it has."
        )
    return arms[arm]


def _makes(loaded: Loaded) -> str:
    return f"`magpie run {loaded.source.path} --until select` makes it."


def _folder(folder: Path, loaded: Loaded, seed: int | None) -> Path:
    """Where an arm's selection lies. `seed`: which sample of a seeded arm; default the first."""
    seeds = [p.name for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if seeds:
        seeds.sort(key=int)
        wanted = str(seed) if seed is not None else seeds[0]
        if wanted not in seeds:
            raise UserError(
                f"--seed {wanted}: {folder.name} was drawn for the seeds {', '.join(seeds)}."
            )
        folder = folder / wanted
    if not (folder / "selection.parquet").is_file():
        raise UserError(f"the arm's selection is not made yet ({folder}); {_makes(loaded)}")
    return folder


def _ids(selection: Path) -> pl.Series:
    return pl.read_parquet(selection, columns=["id"], glob=False)["id"]


def _kept(frames: Iterator[pl.DataFrame], ids: pl.Series | None) -> Iterator[pl.DataFrame]:
    for frame in frames:
        kept = frame if ids is None else frame.filter(pl.col("id").is_in(ids.implode()))
        if len(kept):
            yield kept


def _scored(frames: Iterator[pl.DataFrame], file: Path) -> Iterator[pl.DataFrame]:
    """Rows with what a file of ids said of them as `selection_score`, where an arm chose by one."""
    if not file.is_file():
        yield from frames
        return
    scores = pl.read_parquet(file, glob=False).select("id", selection_score="score")
    for frame in frames:
        yield frame.join(scores, on="id", how="left", maintain_order="left")


def _rows(recipe: Recipe, snapshot: Path) -> Iterator[pl.DataFrame]:
    """The answered rows of a snapshot in our form: named columns, who measured what, and every
    other measured column."""
    import pyarrow.parquet as pq

    lazy = pl.scan_parquet(snapshot, glob=False)
    schema = lazy.collect_schema()
    measured = lazy.select(pl.all().is_not_null().any()).collect().row(0, named=True)
    besides = ("temperature", "top_p", "seed", "messages", *PUBLISHED)
    named = [c for c in PUBLISHED if c in schema]
    known = measures(recipe.synth.tags).columns
    extras = [c for c in schema if c in known and c not in besides and measured[c]]
    extras += ["heldout"] if recipe.synth.heldout else []
    extras += ["imported_response"] if "imported_response" in schema else []
    values = [_value(c, schema[c]) for c in (*named, *extras)]
    models = _generators(recipe)
    who = [
        pl.when(pl.col(GENERATORS[c]).is_not_null()).then(pl.lit(model)).alias(c)
        for c, model in models.items()
        if GENERATORS[c] in schema
    ]
    messages = [pl.col("messages")] if "messages" in schema else []
    columns = [*values, _sampling(recipe, schema), *who, *messages]
    row = {
        "status": pl.lit(OK),
        "reason": pl.lit(None, pl.String),
        "failed_tags": pl.lit([], TROUBLE),
    }
    for part in pq.ParquetFile(snapshot).iter_batches(batch_size=BATCH):
        frame = pl.DataFrame(pl.from_arrow(part))
        yield frame.filter(pl.col("status:response") == OK).select(*columns, **row)


def _value(name: str, kind: pl.DataType) -> pl.Expr:
    label = isinstance(kind, (pl.Enum, pl.Categorical))
    return pl.col(name).cast(pl.String) if label else pl.col(name)


def _sampling(recipe: Recipe, schema: pl.Schema) -> pl.Expr:
    """The fields of gen_input_configs that our columns know."""
    known = {
        "input_generator": pl.col("model"),
        "pre_query_template": pl.lit(recipe.synth.pre_query_template, pl.String),
    }
    return pl.struct(
        known.get(name, or_null(name, schema, kind)).alias(name)
        for name, kind in origin.SAMPLING.items()
    ).alias("gen_input_config")


def _generators(recipe: Recipe) -> dict[str, str]:
    """Column that names a model -> its name, as the recipe has it."""
    tags = recipe.synth.tags

    def tagger(model: ModelConfig | None) -> str:
        return (model or recipe.synth.teacher).model

    named = {
        "quality_generator": tagger(tags.quality.model),
        "difficulty_generator": tagger(tags.difficulty.model),
        "task_category_generator": tagger(tags.category.model),
    }
    return named | ({"reward_model": tags.reward.model} if tags.reward else {})


def _provenance(recipe: Recipe, snapshot: Path) -> dict[str, Any]:
    """Facts for the card, by name."""
    synth = recipe.synth
    lazy = pl.scan_parquet(snapshot, glob=False)
    schema = lazy.collect_schema()
    entries = lazy.group_by("temperature", "top_p").agg(rows=pl.len())
    by_rows = entries.sort("rows", descending=True).collect()
    unique = {
        c: ", ".join(lazy.select(pl.col(c).drop_nulls().unique().sort()).collect()[c])
        for c in ("revision", "template")
        if c in schema
    }
    near = lazy.select(pl.col("min_neighbor_distance").is_not_null().any()).collect().item()
    return {
        "teacher": synth.teacher.model,
        "revision of the teacher": unique.get("revision", ""),
        "digest of the pre-query template's token ids": unique.get("template", ""),
        "instructions drawn, by sampling": by_rows.to_dicts(),
        "system prompt": synth.system_prompt,
        "responder": synth.responder and synth.responder.model,
        "sampling of responses": synth.response,
        "embeddings for neighbour distances": synth.tags.neighbors.name if near else None,
    }


def _text(recipe: Recipe) -> str:
    """The recipe as YAML: what differs from the defaults, without where it ran."""
    shown = recipe.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude={"store", "track", "project"}
    )
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).strip()
