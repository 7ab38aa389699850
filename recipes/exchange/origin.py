"""Where a recipe's rows come from that were imported: what their source says of them, and what the
recipe measured itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.columns import OK
from synth.config.rows import ImportConfig
from synth.config.synthesis import SynthConfig
from synth.measures import GENERATORS
from synth.published.files import Notes
from synth.published.forms import or_null, sampling_of
from synth.published.rows import read
from synth.tags.asking.own import measures

if TYPE_CHECKING:
    from synth.measures import PolarsTypes

SAMPLING: PolarsTypes = {
    "temperature": pl.Float64,
    "top_p": pl.Float64,
    "seed": pl.Int64,
    "input_generator": pl.String,
    "pre_query_template": pl.String,
}
"""The fields of a row's sampling that we know."""


def told(synth: SynthConfig, source: ImportConfig, snapshot: Path) -> pl.DataFrame:
    """What the source says of the snapshot's rows: [id, model, gen_input_config, the columns that
    name a model, has: list of the columns that a row has a value of].

    Null where it says nothing. Raises UserError when the source cannot be read any more.
    """
    known = measures(synth.tags).columns
    names = [c for c in pl.scan_parquet(snapshot, glob=False).collect_schema() if c in known]
    if source.answers == "all":  # what it says of an answer is of one that gave way to ours
        table = measures(synth.tags).table
        ours = [m for m, each in table.items() if m == "response" or each.reads == "response"]
        names = [c for c in names if known[c].measure not in ours]
    parts = []
    for frame in read(source.import_, source.limit, how=source, notes=Notes()):
        sampling = sampling_of(frame.schema, SAMPLING, strict=False)
        who = [or_null(c, frame.columns, pl.String) for c in ("model", *GENERATORS)]
        given = [c for c in names if c in frame.columns]
        has = pl.concat_list(pl.when(pl.col(c).is_not_null()).then(pl.lit(c)) for c in given)
        parts.append(frame.select("id", sampling, *who, has=has.list.drop_nulls()))
    return pl.concat(parts)


def with_origin(
    frames: Iterator[pl.DataFrame], told: pl.DataFrame, generators: Mapping[str, str]
) -> Iterator[pl.DataFrame]:
    """Rows in our form, with models and sampling as the source tells them; the recipe's own models
    only where a cell is the recipe's.

    `generators`: column that names a model -> its name, as the recipe has it.
    """
    for frame in frames:
        bare = frame.drop("model", "gen_input_config", *GENERATORS, strict=False)
        ours = bare.join(told, on="id", how="left", maintain_order="left")
        for who, column in GENERATORS.items():
            if column in frame.columns:
                own = ~pl.col("has").list.contains(column)
                by = pl.when(own).then(pl.lit(generators.get(who), pl.String)).otherwise(who)
                named = pl.when(pl.col(column).is_not_null()).then(by)
                ours = ours.with_columns(named.alias(who))
        first = [c for c in frame.columns if c in ours.columns]
        yield ours.select(*first, pl.exclude(*first, "has"))


def provenance(
    synth: SynthConfig, source: ImportConfig, snapshot: Path, told: pl.DataFrame
) -> dict[str, Any]:
    """Facts for the card, by name: the source, and what of the answered rows was measured by the
    recipe, with the models that wrote texts."""
    path = Path(source.import_).expanduser()
    measured = _measured(synth, snapshot, told)
    continued = synth.turns > 1 and "messages" in measured
    facts: dict[str, Any] = {
        "rows imported from": path.name if path.exists() else source.import_,
        "columns measured by this recipe": ", ".join(measured) or "none",
    }
    if "response" in measured or continued:
        facts["responder"] = (synth.responder or synth.teacher).model
        facts["sampling of responses"] = synth.response
    if continued:
        facts["model of the further turns"] = synth.teacher.model
    if "min_neighbor_distance" in measured:
        facts["embeddings for neighbour distances"] = synth.tags.neighbors.name
    return facts


def _measured(synth: SynthConfig, snapshot: Path, told: pl.DataFrame) -> list[str]:
    """The columns of the snapshot's answered rows that the recipe filled, in any row."""
    lazy = pl.scan_parquet(snapshot, glob=False).filter(pl.col("status:response") == OK)
    unmeasured = ("text", "turns") if synth.turns == 1 else ("text",)
    known = measures(synth.tags).columns
    there = [c for c in lazy.collect_schema() if c in known]
    names = [c for c in there if known[c].measure not in unmeasured]
    filled = lazy.select("id", *(pl.col(c).is_not_null() for c in names)).collect()
    filled = filled.join(told.select("id", "has"), on="id", how="left")
    origins = {c: {c, known[c].field.follows or c} for c in names}
    own = filled.select((pl.col(c) & ~_brought(of)).any() for c, of in origins.items()).row(
        0, named=True
    )
    # What fills one column fills all of its measure.
    measured = {known[c].measure for c in names if own[c]}
    return [c for c in names if known[c].measure in measured and filled[c].any()]


def _brought(origins: set[str]) -> pl.Expr:
    """Whether the source holds a column of a row, or the one that it follows from."""
    return pl.any_horizontal(
        pl.col("has").list.contains(name).fill_null(False) for name in sorted(origins)
    )
