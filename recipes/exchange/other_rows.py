"""Rows of arms that are no arm of the pool, in our form: someone else's data with what was measured
of it, another recipe's selection, and mixtures with the source and the licence of every row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import OK
from core.errors import UserError
from recipes.schema import Loaded, load
from recipes.stages.sets.beside import mixture_of, rows_of
from synth.config.rows import Reading
from synth.filters.arm import ArmConfig, Choosing, PartConfig
from synth.measures import DECLARED
from synth.published.forms import PUBLISHED, TROUBLE, or_null
from synth.published.rows import read
from synth.published.to_ours import OWN_COLUMNS
from synth.tags.asking.own import measures


@dataclass(frozen=True)
class Export:
    """Rows in our form, what the card calls them, and where they come from."""

    name: str
    frames: Iterator[pl.DataFrame]
    provenance: dict[str, Any]
    reads: tuple[str, ...] = ()
    """The data that a recipe names and the rows are read from, where they are not its pool's
    own."""
    licences: Mapping[str, int] = field(default_factory=dict)
    """Rows by licence, where the recipe knows of one."""


Opened = Callable[[Loaded, str, int | None], Export]
"""The rows of an arm of a recipe, for one seed."""


def of_arm(loaded: Loaded, arm: str, config: ArmConfig, folder: Path, opened: Opened) -> Export:
    """The rows of an arm that chose from no pool. `folder`: where its selection lies; `opened`: how
    the rows of other arms are had."""
    name = f"{loaded.recipe.name}-{arm}"
    known = rows_of(folder)
    known = pl.DataFrame(schema={"id": pl.String}) if known is None else known
    selection = folder / "selection.parquet"
    if config.kind == "mix":
        mixture = mixture_of(folder)
        frames = _mixed(loaded, config, folder, known, opened)
        facts = {"mixture": mixture["sources"], "unit": mixture["unit"]}
        reads = tuple(_read_by(loaded, config))
        return Export(name, frames, facts, reads, _licences(known))
    if config.kind == "recipe":
        other = load(str(config.recipe))
        export = opened(other, str(config.arm), _seed(folder))
        frames = _of_selection(export.frames, selection)
        facts = {"recipe that chose the rows": other.recipe.name, "its arm": config.arm}
        return Export(name, frames, facts, export.reads, _licences(known))
    source = str(config.data)
    tagged = _measured(loaded, known)
    frames = _of_selection(_beside(_source(config), tagged), selection)
    facts = {"source": source, "columns measured by this recipe": _own(loaded, tagged, config)}
    if config.answers != "keep":
        synth = loaded.recipe.synth
        which = "all answers" if config.answers == "all" else "the answers that were missing"
        facts |= {"responder": (synth.responder or synth.teacher).model, "it wrote": which}
        facts["sampling of responses"] = synth.response
    return Export(name, frames, facts, (source,), _licences(known))


def _source(config: Choosing) -> Iterator[pl.DataFrame]:
    """The rows of an arm's data as its file has them. A row that the responder answered is no
    failed row for want of an answer."""
    how = Reading.model_validate(config.spec())
    for frame in read(str(config.data), how=how, prompts=config.answers != "keep"):
        yield frame.with_columns(licence=_licence(frame)).drop("license", strict=False)


def _licence(frame: pl.DataFrame) -> pl.Expr:
    stated = [c for c in ("licence", "license") if frame.schema.get(c) == pl.String]
    return pl.coalesce(*stated) if stated else pl.lit(None, pl.String)


def _measured(loaded: Loaded, known: pl.DataFrame) -> pl.DataFrame:
    """Of what is known of rows, the licence and the columns that hold a value somewhere, in the
    types of our form."""
    declared = measures(loaded.recipe.synth.tags).columns
    texts = ("text", "response", "turns")
    names = [c for c in known.columns if c in declared and declared[c].measure not in texts]
    filled = [c for c in names if known[c].null_count() < len(known)]
    plain = [pl.col(c).cast(pl.String) if _label(known.schema[c]) else pl.col(c) for c in filled]
    return known.select("id", *plain, *(["licence"] if "licence" in known.columns else []))


def _label(kind: pl.DataType) -> bool:
    return isinstance(kind, (pl.Enum, pl.Categorical))


def _beside(frames: Iterator[pl.DataFrame], measured: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Rows with the measured columns that they lack, and where they have one but no value, its
    value; what a row's licence is known to be comes first."""
    for frame in frames:
        rows = frame.join(measured, on="id", how="left", maintain_order="left", suffix="_known")
        for name in measured.columns:
            mine = f"{name}_known"
            if mine in rows.columns and rows.schema[mine] == rows.schema[name]:
                order = (mine, name) if name == "licence" else (name, mine)
                rows = rows.with_columns(pl.coalesce(order).alias(name))
            rows = rows.drop(mine, strict=False)
        yield rows


def _own(loaded: Loaded, measured: pl.DataFrame, config: Choosing) -> str:
    """The columns that the recipe measured of data, by name."""
    first = next(_source(config), None)
    brought = set() if first is None else set(first.columns)
    return ", ".join(c for c in measured.columns if c not in brought | {"id"}) or "none"


def _of_selection(frames: Iterator[pl.DataFrame], selection: Path) -> Iterator[pl.DataFrame]:
    """Those of the rows that were selected, with the texts that were: an answer may be new."""
    chosen = pl.read_parquet(selection, columns=["id", "messages"], glob=False)
    yield from _with_texts(frames, chosen)


def _with_texts(frames: Iterator[pl.DataFrame], chosen: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Rows with the conversations `chosen` [id, messages] in place of their own texts; rows that
    are not among them are left out."""
    turn = pl.element().struct

    def first(role: str) -> pl.Expr:
        said = pl.element().filter(turn.field("role") == role).struct.field("content")
        return pl.col("messages").list.eval(said).list.first()

    texts = chosen.with_columns(instruction=first("user"), response=first("assistant"))
    pair = pl.col("messages").list.len() == 2
    texts = texts.with_columns(messages=pl.when(~pair).then("messages"))
    for frame in frames:
        new = ("instruction", "response", "messages")
        named = [c for c in frame.columns if c not in new]
        kept = frame.select(named).join(texts, on="id", how="inner", maintain_order="left")
        if len(kept):
            ok = pl.lit(OK).alias("status"), pl.lit(None, pl.String).alias("reason")
            yield kept.with_columns(*ok)


def _licences(known: pl.DataFrame) -> dict[str, int]:
    if "licence" not in known.columns:
        return {}
    return dict(known["licence"].drop_nulls().value_counts(sort=True).iter_rows())


# -- mixtures --------------------------------------------------------------------------------------


def _mixed(
    loaded: Loaded, config: ArmConfig, folder: Path, known: pl.DataFrame, opened: Opened
) -> Iterator[pl.DataFrame]:
    """The rows of a mixture, part by part, with the columns that any part has: those that are
    declared, and `source` and `licence`. `known`: [id, source, source_id, licence]."""
    parts: list[tuple[pl.DataFrame, Iterator[pl.DataFrame]]] = []
    schema: dict[str, Any] = {}
    declared = measures(loaded.recipe.synth.tags).columns
    for name in config.parts:
        mine = known.filter(pl.col("source").str.split("/").list.first() == name)
        if mine.is_empty():
            continue
        frames = _of_part(loaded, config, name, _seed(folder), opened)
        first = next(frames, None)
        if first is None:
            raise UserError(f"the rows of {name} are not to be had any more; run the recipe again.")
        for column, kind in first.schema.items():
            told = column in declared or column in PUBLISHED
            if told and schema.setdefault(column, kind) != kind:
                schema[column] = DECLARED[column].plain if column in DECLARED else pl.String
        parts.append((mine, itertools.chain([first], frames)))
    schema.pop("gen_input_config", None)  # each source has its own
    selection = pl.read_parquet(
        folder / "selection.parquet", columns=["id", "messages"], glob=False
    )
    for mine, frames in parts:
        names = mine.select("source", "licence", id="source_id", mixed=pl.col("id"))
        for frame in frames:
            rows = frame.drop("source", "licence", *OWN_COLUMNS, strict=False)
            rows = rows.join(names, on="id", how="inner", maintain_order="left")
            rows = rows.with_columns(id="mixed")
            columns = [or_null(c, rows.columns, kind) for c, kind in schema.items()]
            failed = pl.lit([], TROUBLE).alias("failed_tags")
            whole = rows.select(*columns, "source", "licence", failed)
            yield from _with_texts(iter([whole]), selection)


def _of_part(
    loaded: Loaded, config: ArmConfig, name: str, seed: int | None, opened: Opened
) -> Iterator[pl.DataFrame]:
    """The rows that a part of a mixture chose from, or chose."""
    part = (config.mix or {})[name]
    if not isinstance(part, PartConfig):
        return opened(loaded, name, seed).frames
    if part.recipe:
        return opened(load(part.recipe), str(part.arm), seed).frames
    return _source(part)


def _read_by(loaded: Loaded, config: ArmConfig) -> Iterator[str]:
    """The data that a mixture is read from, which an export must not replace."""
    for name, part in (config.mix or {}).items():
        choosing: Choosing | None = part if isinstance(part, PartConfig) else None
        if choosing is None:
            choosing = loaded.recipe.arms.get(name)
        if choosing is not None and choosing.data:
            yield choosing.data


def _seed(folder: Path) -> int | None:
    """The seed of a selection's folder, ARM/SEED."""
    return int(folder.name) if folder.name.isdigit() else None
