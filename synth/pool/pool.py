"""The pool: every row of one synthesis with every column measured so far, joined by id.

Which columns hold the cells follows from the recipe alone (model revisions, templates, prompts,
sampling, VERSION of the code), never from row counts or arms, so a pool grows and two recipes share
it. Ids are fixed before generation: a row killed in mid-flight is made again under the same id with
the same sampling seed. A tag or response also remembers which text it is of (`of`), so that a
column whose instructions were made anew with other words counts as unmeasured instead of describing
a text that is gone.

Texts stay on disk: the frame that filters and the schedule see holds figures, labels and digests,
and `texts` reads words by slices.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.columns import OK, Column
from core.files import file_digest
from core.store import digest
from synth.chat import templates
from synth.chat.families import system_prompt_of
from synth.config import ImportConfig, SynthConfig
from synth.context import Context
from synth.duplicates import embeddings
from synth.filters.rule import Vectors, held_out
from synth.generate import single_turn
from synth.generate.sampling_grid import Plan
from synth.generate.system_prompts import steered
from synth.measures import COLUMNS, DIFFICULTY, MEASURES, QUALITY, SAFETY, by_cost, long_columns
from synth.pool.computed import COMPUTED
from synth.pool.short_columns import Lean, digest_pairs, digest_texts
from synth.tags import sanitize, text_figures

SLICE = 20_000
"""Rows whose texts are in memory at once."""

POOLED = tuple(m for m in by_cost() if MEASURES[m].reads == "pool")
INSTRUCTION_FIELDS: dict[str, Any] = {
    "index": pl.Int64,
    "instruction": pl.String,
    "finish_reason": pl.String,
    "tokens": pl.Int64,
    "seed": pl.Int64,
    "temperature": pl.Float64,
    "top_p": pl.Float64,
    "sampling": pl.String,
    "model": pl.String,
    "revision": pl.String,
    "template": pl.String,
    "system_prompt": pl.String,
    "thinking": pl.String,
}
_TYPES: dict[str, Any] = {
    "number": pl.Float64,
    "bool": pl.Boolean,
    "text": pl.String,
    "label": pl.String,
}
_OF: dict[str, Any] = {"of": pl.String}


class Pool:
    """The columns of one synthesis. Reading needs no tokenizer and no GPU."""

    def __init__(self, config: SynthConfig, context: Context) -> None:
        self.root, self.config, self.context = context.root, config, context
        self.imported = isinstance(config.rows, ImportConfig)
        self.teacher = context.resolve(config.teacher.model, config.teacher.revision)
        self.cells: dict[str, dict[str, Any]] = {"instruction": self._instruction_cell()}
        self.instruction = Column.open(
            self.root, "instruction", self.cells["instruction"], INSTRUCTION_FIELDS
        )
        self.columns: dict[str, Column] = {}
        for measure, computed in COMPUTED.items():
            cell = computed.cell(config, context)
            if cell is not None:
                self.cells[measure] = cell
                if measure not in POOLED:
                    self.columns[measure] = Column.open(
                        self.root, measure, cell, {**_OF, **computed.fields}
                    )
        self.imports: dict[str, Column] = {}
        if self.imported:
            self.imports = {
                m: Column.open(self.root, m, self.cells["instruction"], {**_OF, **c.fields})
                for m, c in COMPUTED.items()
            }
        self._lean: dict[Path, Lean] = {}

    def _instruction_cell(self) -> dict[str, Any]:
        config = self.config
        if isinstance(config.rows, ImportConfig):
            path = Path(config.rows.import_).expanduser()
            files = (
                sorted(p for p in path.rglob("*") if p.is_file())
                if path.is_dir()
                else [path]
                if path.is_file()
                else []
            )
            return {"import": [file_digest(p) for p in files] or config.rows.import_}
        return {
            "teacher": self.context.revision(config.teacher),
            "system_prompt": system_prompt_of(config.teacher.model, config.system_prompt),
            "pre_query_template": config.pre_query_template,
            "sampling": config.instruction,
            "seed": config.seed,
            **(
                {"system_prompts": [[p.text, p.weight] for p in steered(config.system_prompts)]}
                if config.system_prompts
                else {}
            ),
            **(
                {"first_token": config.first_token.model_dump(exclude_defaults=True)}
                if config.first_token
                else {}
            ),
            "VERSION": [single_turn.VERSION, templates.VERSION],
        }

    # -- rows --------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> Plan:
        """Every place that is to be filled with an instruction."""
        return Plan(self.cells["instruction"], self.config)

    @property
    def planned(self) -> pl.DataFrame:
        """Every place: [id (of its first draw), cell, index, seed]; the id of an index never
        depends on how many rows are asked for."""
        return self.plan.places

    def drawn(self) -> pl.DataFrame:
        """The instructions that exist and belong to this pool, failed ones included, in order:
        figures and digests (`of`), no words."""
        held = self._read(self.instruction, "instruction")
        if not self.imported:
            made, _ = self.plan.draws(held.select("id", "status"))
            return made.select("id").join(held, on="id", how="inner", maintain_order="left")
        if isinstance(self.config.rows, ImportConfig) and self.config.rows.limit:
            held = held.filter(pl.col("index") < self.config.rows.limit)
        return held.sort("index")

    @property
    def import_marker(self) -> Path:
        """Written when an import has come to its end: {"limit": how many rows were asked for, null:
        all}."""
        return self.instruction.folder / "imported.json"

    def to_import(self) -> bool:
        """Whether imported rows are still to come: the import was never begun, was killed, or ended
        at a lower limit."""
        if not isinstance(self.config.rows, ImportConfig):
            return False
        if not self.import_marker.is_file():
            return True
        limit, asked = json.loads(self.import_marker.read_text())["limit"], self.config.rows.limit
        return limit is not None and (asked is None or asked > limit)

    def missing_instructions(self) -> pl.DataFrame:
        """Draws still to be made: [id, place, cell, index, seed]."""
        return self.plan.draws(self._read(self.instruction, "instruction").select("id", "status"))[
            1
        ]

    def column(self, measure: str, rows: pl.DataFrame) -> Column | None:
        """Where new cells of a measure go; None when the recipe gives no way to measure it.

        `rows`: the whole pool's frame. The key of a measure of the whole pool (nearest neighbours)
        also holds the digest of its ids and texts.
        """
        if measure not in POOLED:
            return self.columns.get(measure)
        if measure not in self.cells:
            return None
        whole = digest([rows["id"].to_list(), rows["of"].to_list()])
        return Column.open(
            self.root,
            measure,
            {**self.cells[measure], "pool": whole},
            {**_OF, **COMPUTED[measure].fields},
        )

    @property
    def complete(self) -> tuple[str, ...]:
        """The measures that a chosen row must have besides what filters read: its conversation."""
        return ("response", "turns") if self.config.turns > 1 else ("response",)

    def spent(self, measure: str, ids: pl.Series) -> pl.DataFrame | None:
        """[id, tokens, prompt_tokens] of the cells of these rows that were bought; None for a
        measure that costs no tokens."""
        column = self.columns[measure]
        if "tokens" not in column.fields:
            return None
        cells = self._lean_of(column, measure).read().select("id", "tokens", "prompt_tokens")
        return cells.join(ids.to_frame("id"), on="id", how="semi")

    def frame(self, columns: Collection[str] = ()) -> pl.DataFrame:
        """Every drawn row with every column a filter may name (null: unmeasured or failed) and
        `status:MEASURE` for each measure.

        `columns` are those that filters read: the long texts among them are read, others are left
        out. Also `heldout` (by hash of id), `reserved` (held out, or with the very instruction of a
        held-out row), and the digests `of` (of the instruction) and `of_pair` (and response).
        """
        drawn = self.drawn().filter(pl.col("status") == OK).drop("status", "reason")
        rows = drawn.rename(
            {"finish_reason": "instruction_finish_reason", "tokens": "instruction_tokens"}
        )
        rows = rows.with_columns((~pl.col("of").is_first_distinct()).alias("exact_duplicate"))
        for measure in MEASURES:
            if measure != "text":
                rows = self._join(rows, measure, columns)
            if measure == "response":
                rows = rows.with_columns(
                    digest_pairs(rows["of"], rows["of_response"]).alias("of_pair")
                )
        held = held_out(rows["id"], self.config.heldout)
        rows = rows.with_columns(held.alias("heldout"))
        rows = rows.with_columns(
            pl.col("of").is_in(rows.filter("heldout")["of"].implode()).alias("reserved")
        )
        wanted = long_columns(columns)
        return self.with_texts(rows, wanted)

    def with_texts(self, rows: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
        """Rows of the frame with those long texts beside that it does not hold yet."""
        new = sorted(set(names) - set(rows.columns))
        return (
            rows.join(self.texts(rows, new), on="id", how="left", maintain_order="left")
            if new
            else rows
        )

    def texts(self, rows: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
        """[id, *names]: long texts of rows of the frame, in their order; null where there is none
        or its cell failed."""
        found = rows.select("id")
        by_measure: dict[str, list[str]] = {}
        for name in names:
            by_measure.setdefault(COLUMNS[name][0], []).append(name)
        for measure, wanted in by_measure.items():
            if measure == "text":
                parts = [
                    self._instructions(
                        self._sources(measure)[0].texts(rows.select("id"), ["instruction"])
                    ).select("id", *wanted)
                ]
            else:
                of = "of_pair" if MEASURES[measure].reads == "response" else "of"
                usable = rows.filter(pl.col(f"status:{measure}") == OK).select(
                    "id", pl.col(of).alias("of")
                )
                parts = [
                    lean.texts(usable, [n for n in wanted if n in lean.column.fields])
                    for lean in self._sources(measure)
                ]
            whole = (
                pl.concat(parts, how="diagonal").unique("id", keep="first", maintain_order=True)
                if parts
                else rows.select("id").clear()
            )
            found = found.join(whole, on="id", how="left", maintain_order="left")
            found = found.with_columns(
                [pl.lit(None, pl.String).alias(n) for n in wanted if n not in found.columns]
            )  # of no column of this recipe
        return found.select("id", *names)

    def instructions(self, rows: pl.DataFrame) -> Iterator[pl.Series]:
        """The instructions of rows of the frame, in their order, slice by slice."""
        for top in range(0, len(rows), SLICE):
            yield self.texts(rows.slice(top, SLICE), ["instruction"])["instruction"]

    @cached_property
    def vectors(self) -> Vectors:
        """Embeddings of the instructions, for arms that choose by likeness."""
        return Vectors(self._embedded)

    def _embedded(self, ids: pl.Series) -> NDArray[np.float32]:
        """Unit vectors of the instructions of these ids, float32 [n, d], by the model that
        neighbours are found with; embedded once and kept."""
        places = (
            self.drawn()
            .select("id")
            .with_row_index("place")
            .join(pl.DataFrame({"id": ids}), on="id", how="semi")
            .sort("place")
        )
        model = self.context.resolve(self.config.tags.neighbors.model, None)
        found = embeddings.vectors(
            self.root,
            places["id"].to_list(),
            itertools.chain.from_iterable(self.instructions(places)),
            model,
        )
        row = dict(zip(places["id"], range(len(places)), strict=True))
        return found[[row[i] for i in ids]]

    def snapshot(self, frame: pl.DataFrame, path: Path) -> None:
        """Write the frame with all its texts to one Parquet file, slice by slice; it appears when
        it is whole."""
        names = sorted(
            n
            for m in MEASURES
            if m == "text" or self._sources(m)
            for n in long_columns(MEASURES[m].columns)
            if n != "raw_instruction"
        )
        temporary = path.with_name(f".{path.name}.tmp")
        writer: pq.ParquetWriter | None = None
        try:
            for top in range(0, max(len(frame), 1), SLICE):
                part = frame.slice(top, SLICE)
                table = self.with_texts(part, names).to_arrow()
                writer = writer or pq.ParquetWriter(temporary, table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
        temporary.replace(path)

    # -- reading -----------------------------------------------------------------------------------

    def _read(self, column: Column, measure: str) -> pl.DataFrame:
        return self._lean_of(column, measure).read()

    def _lean_of(self, column: Column, measure: str) -> Lean:
        if column.folder not in self._lean:
            shorten = {"instruction": self._short_instructions, "response": _short_responses}.get(
                measure, _short
            )
            rules: list[Any] = [text_figures.VERSION]
            if measure == "instruction":
                rules += [self.config.sanitize and sanitize.VERSION, self.config.sanitize]
            version = (
                digest([rules, sorted(COLUMNS), sorted(column.fields)])[:12]
                if measure in ("instruction", "response")
                else None
            )
            self._lean[column.folder] = Lean(column, shorten, version)
        return self._lean[column.folder]

    def _sources(self, measure: str) -> list[Lean]:
        """The columns that hold a measure's cells, imported ones first."""
        if measure == "text":
            return [self._lean_of(self.instruction, "instruction")]
        columns = [
            c for c in (self.imports.get(measure), self.columns.get(measure)) if c is not None
        ]
        return [self._lean_of(c, measure) for c in columns]

    def _instructions(self, part: pl.DataFrame) -> pl.DataFrame:
        """Instructions as they are answered and tagged, with the raw text beside."""
        return sanitize.with_raw(part, self.config.sanitize)

    def _short_instructions(self, part: pl.DataFrame) -> pl.DataFrame:
        part = self._instructions(part)
        part = part.with_columns(digest_texts(part["instruction"].to_list()).alias("of"))
        part = _add(
            part,
            text_figures.instruction_columns(part.select("id", "instruction", "finish_reason")),
        )
        return part.drop("instruction", "raw_instruction", "thinking")

    def _join(self, rows: pl.DataFrame, measure: str, columns: Collection[str]) -> pl.DataFrame:
        declared, pooled = MEASURES[measure], measure in POOLED
        of = "of_pair" if declared.reads == "response" else "of"
        own = self.column(measure, rows) if pooled else None
        frames = (
            []
            if own is None
            else [
                self._lean_of(own, measure).read().with_columns(pl.lit(None, pl.String).alias("of"))
            ]
        )
        for lean in self._sources(measure):
            cells = _derived(lean.read(), measure)
            imported = self.imports.get(measure) is lean.column
            asked = [
                c
                for c in columns
                if c in declared.columns and not declared.columns[c].long and c != "near_duplicate"
            ]
            # What was imported is taken as it is, unless a filter asks for what it lacks and this
            # recipe can measure it.
            if not (
                imported
                and measure in self.cells
                and any(
                    c not in cells.columns or cells[c].null_count() == len(cells) for c in asked
                )
            ):
                frames.append(cells)
        cells = (
            pl.concat(frames, how="diagonal")
            if frames
            else pl.DataFrame(schema={"id": pl.String, "of": pl.String, "status": pl.String})
        )
        values = [
            n
            for n in cells.columns
            if n not in ("id", "of", "status", "reason", "tokens", "prompt_tokens")
        ]
        if pooled:  # of this very pool, or imported with it
            cells, on = cells.unique("id", keep="first", maintain_order=True).drop("of"), ["id"]
        else:
            cells, on = (
                cells.unique(["id", "of"], keep="first", maintain_order=True).rename({"of": of}),
                ["id", of],
            )
        cells = cells.select(
            *on,
            pl.col("status").alias(f"status:{measure}"),
            *[n for n in values if n not in rows.columns],
        )
        rows = rows.join(cells, on=on, how="left", maintain_order="left")
        values = [n for n in cells.columns if n not in on and not n.startswith("status:")]
        numbers = [n for n in values if cells.schema[n] == pl.Float64]
        bad = (
            pl.any_horizontal([pl.col(n).is_nan().fill_null(False) for n in numbers])
            if numbers
            else pl.lit(False)
        )
        status = pl.col(f"status:{measure}")
        rows = rows.with_columns(
            pl.when(status.is_not_null() & bad)
            .then(pl.lit("failed"))
            .otherwise(status)
            .alias(f"status:{measure}")
        )
        rows = rows.with_columns([pl.when(status == OK).then(pl.col(n)).alias(n) for n in values])
        if (
            measure == "turns" and self.config.turns == 1
        ):  # a row that nobody continues has one turn
            lone, one = pl.col("status:turns").is_null(), pl.lit(1, pl.Int64)
            rows = rows.with_columns(
                pl.when(lone).then(one).otherwise("turns").alias("turns")
                if "turns" in rows.columns
                else one.alias("turns")
            )
            rows = rows.with_columns(pl.col("status:turns").fill_null(OK))
        if measure == "neighbors" and "min_similar_id" in rows.columns:
            rows = rows.with_columns(
                (pl.col("min_similar_id") != pl.col("id")).alias("near_duplicate")
            )
        absent = {n: f for n, f in declared.columns.items() if not f.long and n not in rows.columns}
        rows = rows.with_columns(
            [
                pl.lit(None, _TYPES.get(f.kind, pl.Enum(f.labels))).alias(n)
                for n, f in absent.items()
            ]
        )
        if measure == "response" and "of_response" not in rows.columns:
            rows = rows.with_columns(pl.lit(None, pl.String).alias("of_response"))
        return rows


_RANKS = {
    "quality": ("input_quality", "input_quality_rank", QUALITY),
    "difficulty": ("difficulty", "difficulty_rank", DIFFICULTY),
}


def _derived(cells: pl.DataFrame, measure: str) -> pl.DataFrame:
    """What imported cells do not say but follows from what they say: the rank of a label, the
    verdict in a guard's raw answer."""
    if measure in _RANKS:
        label, rank, labels = _RANKS[measure]
        place = pl.col(label).replace_strict(
            dict(zip(labels, range(1, len(labels) + 1), strict=True)),
            default=None,
            return_dtype=pl.Float64,
        )
        return cells.with_columns(pl.coalesce(rank, place).alias(rank))
    if measure == "safety":
        said = (
            pl.col("llama_guard_2")
            .str.strip_chars()
            .str.extract(r"^(safe|unsafe)\b")
            .cast(pl.Enum(SAFETY))
        )
        return cells.with_columns(pl.coalesce("safety", said).alias("safety"))
    return cells


def _short(part: pl.DataFrame) -> pl.DataFrame:
    """Cells without their long texts."""
    return part.drop([n for n in part.columns if n in COLUMNS and COLUMNS[n][1].long])


def _short_responses(part: pl.DataFrame) -> pl.DataFrame:
    """Of a response: its digest, length and the like."""
    names = {
        "finish_reason": "response_finish_reason",
        "tokens": "response_tokens",
        "prompt_tokens": "response_prompt_tokens",
    }
    found = text_figures.response_columns(part.select("id", "response", "finish_reason"))
    part = part.with_columns(
        *[pl.col(old).alias(new) for old, new in names.items()],
        digest_texts(part["response"].to_list()).alias("of_response"),
    )
    return _short(_add(part, found)).drop("finish_reason")


def _add(rows: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    new = [c for c in found.columns if c in COLUMNS and c not in rows.columns]
    return rows.hstack(
        found.select(new)
    )  # in the same order; an id may be there twice, with two texts
