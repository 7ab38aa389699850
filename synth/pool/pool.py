"""The pool: every row of one synthesis with every column measured so far, joined by id.

Ids are fixed before generation: a row killed in mid-flight is made again under the same id with the
same sampling seed. A tag or response also remembers which text it is of (`of`), so that a column
whose instructions were made anew with other words counts as unmeasured instead of describing a text
that is gone.

Texts stay on disk: the frame that filters and the schedule see holds figures, labels and digests,
and `texts` reads words by slices.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.cells.content import beside, frame_digest
from core.cells.damage import hurt
from core.cells.merging import FILES
from core.cells.seals import seal_of
from core.columns import FAILED, OK, STATUS, Column
from core.errors import UserError
from core.files import read_json
from core.store import Counts, canonical, digest
from synth.chat.encoding import pair
from synth.config.rows import ImportConfig
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.duplicates import embeddings, services
from synth.filters.choosing.candidates import Vectors
from synth.filters.verdicts import held_out
from synth.generate.sampling_grid import Plan
from synth.pool import imported_answers
from synth.pool.columns import PoolColumns
from synth.pool.joining import join, without_nulls
from synth.published.rows import parquet_file
from synth.tags import sanitize
from synth.tags.scores.hidden_states import compared
from synth.tags.scores.queries import read_queries

SNAPSHOT = 1
"""Part of a snapshot's name: raised when the same cells would give another one."""
SLICE = 20_000
"""Rows whose texts are in memory at once."""


def _as_written(column: pl.Series) -> pl.Series:
    """A column of the frame as snapshots hold it: a status is text there."""
    return column.cast(pl.String) if column.dtype == STATUS else column


class Pool:
    """The columns of one synthesis. Reading needs no tokenizer and no GPU."""

    def __init__(self, config: SynthConfig, context: Context) -> None:
        self.root, self.config, self.context = context.root, config, context
        self.imported = isinstance(config.rows, ImportConfig)
        self._columns = PoolColumns(config, context)
        self.cells = self._columns.determines
        """What determines a cell, by measure; `instruction` among them."""
        self.instruction = self._columns.instruction
        self.columns, self.imports = self._columns.own, self._columns.imports
        self.measures, self.computed = self._columns.measures, self._columns.computed

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
        source = self.config.rows
        stored = self._draws()
        if not isinstance(source, ImportConfig):
            drawn, _ = self.plan.draws(stored.select("id", "status"))
            return beside(drawn.select("id"), stored, ["id"])
        if source.limit:
            stored = stored.filter(pl.col("index") < source.limit)
        return imported_answers.prompts(stored, self._columns.answers).sort("index")

    def _draws(self) -> pl.DataFrame:
        return self._columns.lean(self.instruction, "instruction").read()

    @property
    def import_marker(self) -> Path:
        """Written when an import has come to its end: {"limit": how many rows were asked for, null:
        all; "own": the recipe's own columns that were looked for}."""
        return self.instruction.folder / "imported.json"

    def to_import(self) -> bool:
        """Whether imported rows are still to come: the import was never begun, was killed, or ended
        at a lower limit."""
        source = self.config.rows
        if not isinstance(source, ImportConfig):
            return False
        done = self._imported()
        if done is None:
            return True
        limit = done["limit"]
        more = limit is not None and (source.limit is None or source.limit > limit)
        return more or not {*self.own_columns} <= {*done.get("own", ())}

    def _imported(self) -> dict[str, Any] | None:
        """What the marker says; None where there is none, or where it is damaged: then the rows are
        imported again, and those that are there are left alone."""
        try:
            done = read_json(self.import_marker)
        except FileNotFoundError:
            return None
        except UserError:
            done = None
        if not isinstance(done, dict) or done.get("seal", seal_of(done)) != seal_of(done):
            hurt(self.import_marker, "was changed after it was made; the rows are imported again")
            return None
        return done if "limit" in done else None

    @property
    def own_columns(self) -> list[str]:
        """The recipe's own columns, each with what it may hold."""
        return [canonical([name, own.holds]) for name, own in self.config.tags.own.items()]

    def missing_instructions(self) -> pl.DataFrame:
        """Draws still to be made: [id, place, cell, index, seed]."""
        _, due = self.plan.draws(self._draws().select("id", "status"))
        return due

    def column(self, measure: str, rows: pl.DataFrame) -> Column | None:
        """Where new cells of a measure go; None when the recipe gives no way to measure it.

        `rows`: the whole pool's frame. The key of a measure of the whole pool (nearest neighbours)
        also holds the digest of its ids and texts.
        """
        return self._columns.of(measure, rows)

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
        cells = self._columns.lean(column, measure).read()
        if "all_tokens" in cells.columns:  # of several answers, one of which was kept
            cells = cells.with_columns(tokens=pl.coalesce("all_tokens", "tokens"))
        bought = cells.select("id", "tokens", "prompt_tokens")
        return bought.join(ids.to_frame("id"), on="id", how="semi")

    def with_system_prompt(self, rows: pl.DataFrame) -> pl.DataFrame:
        """[id, of] of the rows that are to be answered though the conversation that they were
        imported with begins with a system prompt; none where imported answers are kept."""
        found = [rows.clear().select("id", "of")]
        for part in rows.iter_slices(SLICE) if self.answers != "keep" else ():
            lean = self._columns.lean(self.imports["turns"], "turns")
            talks = lean.texts(part.select("id"), ["messages"]).drop_nulls("messages")
            begins = pl.col("messages").list.first().struct.field("role") == "system"
            told = talks.filter(begins).select("id")
            found.append(part.join(told, on="id", how="semi").select("id", "of"))
        return pl.concat(found)

    def own(self, measure: str, frame: pl.DataFrame) -> pl.DataFrame:
        """[id, status, reason] of the rows of a frame whose cell of a measure is this recipe's own,
        not one that they were imported with."""
        rows = frame.select("id", of=self.measures.table[measure].of)
        own = self.columns[measure]
        cells = pl.DataFrame(schema=dict.fromkeys(("id", "of", "status", "reason"), pl.String))
        for lean in self._columns.sources(measure):  # imported ones first
            counted = self._columns.counted(lean, measure).select(cells.columns)
            if lean.column is own:
                mine = counted.join(cells, on=["id", "of"], how="anti")
                return mine.join(rows, on=["id", "of"], how="semi").drop("of")
            cells = counted
        return cells.clear().drop("of")

    @property
    def answers(self) -> imported_answers.Answers:
        """Which answers of imported rows count."""
        return self._columns.answers

    def frame(self, columns: Collection[str] = ()) -> pl.DataFrame:
        """Every drawn row with every column a filter may name (null: unmeasured or failed) and
        `status:MEASURE` for each measure.

        `columns` are those that filters read: the long texts among them are read, others are left
        out. Also `heldout` (by hash of id), `reserved` (held out, or with the very instruction of a
        held-out row), and the digests `of` (of the instruction) and `of_pair` (and response).
        """
        drawn = self.drawn().filter(pl.col("status") == OK).drop("status", "reason")
        rows = without_nulls(drawn).rename(
            {"finish_reason": "instruction_finish_reason", "tokens": "instruction_tokens"}
        )
        rows = rows.with_columns(exact_duplicate=~pl.col("of").is_first_distinct())
        for measure in self.measures.table:
            if measure != "text":
                rows = join(rows, self._columns, measure, columns)
        rows = rows.with_columns(heldout=held_out(rows["id"], self.config.heldout))
        reserved = rows.filter("heldout")["of"]
        rows = rows.with_columns(reserved=pl.col("of").is_in(reserved.implode()))
        return self.with_texts(without_nulls(rows), self.measures.long_columns(columns))

    # -- files -------------------------------------------------------------------------------------

    @property
    def _filled(self) -> list[Column]:
        """The columns whose cells are rows of this pool, those of the whole pool aside."""
        return [self.instruction, *self.columns.values(), *self.imports.values()]

    def cut(self) -> None:
        """Make parts of what this process has in its journals."""
        for column in self._filled:
            column.cut()

    def merge(self, say: Callable[[str], None], files: int = FILES) -> Counts:
        """Merge the parts of columns that have more than `files` of them, in the order of the pool;
        what is done, and the disk that it needs, is told to `say`. Returns how many files the
        columns had and have."""
        counts: Counts = {"files": sum(len(column.files()) for column in self._filled)}
        order: pl.Series | None = None
        for column in self._filled:
            if column.loose(files):
                order = self.drawn()["id"] if order is None else order
                column.compact(order, say, files=files)
        return counts | {"merged": sum(len(column.files()) for column in self._filled)}

    def reasons(self, measure: str, frame: pl.DataFrame) -> dict[str, int]:
        """Why cells that this recipe measured failed, of the rows of the whole frame: reason -> how
        many, the most frequent first."""
        column = self.column(measure, frame)
        if column is None:
            return {}
        lost = frame.filter(pl.col(f"status:{measure}") == FAILED).select("id")
        cells = self._columns.lean(column, measure).read().filter(pl.col("status") == FAILED)
        reasons = cells.join(lost, on="id", how="semi")["reason"].fill_null("null")
        return dict(Counter(reasons.to_list()).most_common())

    # -- texts -------------------------------------------------------------------------------------

    def with_texts(self, rows: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
        """Rows of the frame with those long texts beside that it does not hold yet."""
        new = sorted({*names} - {*rows.columns})
        if not new:
            return rows
        return rows.join(self.texts(rows, new), on="id", how="left", maintain_order="left")

    def texts(self, rows: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
        """[id, *names]: long texts of rows of the frame, in their order; null where there is none
        or its cell failed."""
        texts = rows.select("id")
        by_measure: dict[str, list[str]] = {}
        for name in names:
            by_measure.setdefault(self.measures.columns[name].measure, []).append(name)
        for measure, wanted in by_measure.items():
            parts = list(self._texts_of(measure, rows, wanted))
            if parts:
                whole = pl.concat(parts, how="diagonal")
                whole = whole.unique("id", keep="first", maintain_order=True)
                texts = texts.join(whole, on="id", how="left", maintain_order="left")
        absent = [name for name in names if name not in texts.columns]  # of no column of the recipe
        texts = texts.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)
        return texts.select("id", *names)

    def _texts_of(
        self, measure: str, rows: pl.DataFrame, names: list[str]
    ) -> Iterator[pl.DataFrame]:
        """[id, some of the names] from each column that holds a measure's cells."""
        if measure == "text":
            (stored,) = self._columns.sources(measure)
            raw = stored.texts(rows.select("id"), ["instruction"])
            yield sanitize.with_raw(raw, self.config.sanitize).select("id", *names)
            return
        good = rows.filter(pl.col(f"status:{measure}") == OK)
        usable = good.select("id", of=self.measures.table[measure].of)
        for lean in self._columns.sources(measure):
            rows_of = usable
            if measure == "response" and self._columns.answers == "missing":
                counted = self._columns.counted(lean, measure)
                rows_of = usable.join(counted, on=["id", "of"], how="semi", maintain_order="left")
            yield lean.texts(rows_of, [name for name in names if name in lean.column.fields])

    def instructions(self, rows: pl.DataFrame) -> Iterator[pl.Series]:
        """The instructions of rows of the frame, in their order, slice by slice."""
        for part in rows.iter_slices(SLICE):
            yield self.texts(part, ["instruction"])["instruction"]

    def content(self, frame: pl.DataFrame) -> str:
        """What a snapshot of the frame would hold, as a digest of its figures and digests, and of
        the files in which those words lie that have no digest; no text is read."""
        digested = {"instruction", "raw_instruction", "messages"}
        texts = [
            columns[measure]
            for columns in (self.imports, self.columns)
            for measure in columns
            if self.measures.long_columns(self.measures.table[measure].columns) - digested
        ]
        # A part is never changed, and a journal only grows.
        lie = itertools.chain.from_iterable(column.files() for column in texts)
        files = [[str(path.relative_to(self.root)), path.stat().st_size] for path in lie]
        return digest([SNAPSHOT, frame_digest(map(_as_written, frame)), files])[:32]

    def snapshot(self, frame: pl.DataFrame, path: Path) -> None:
        """Write the frame with all its texts to one Parquet file, slice by slice; it appears when
        it is whole."""
        table = self.measures.table
        held = [table[m].columns for m in table if self._columns.sources(m)]
        names = {n for columns in held for n in self.measures.long_columns(columns)}
        names -= {"raw_instruction"}
        slices: Iterable[pl.DataFrame] = frame.iter_slices(SLICE) if len(frame) else [frame]
        with parquet_file(path, "snappy") as add:
            for part in slices:
                whole = self.with_texts(part, names).with_columns(map(_as_written, part))
                add(self._beside_new_answers(whole).to_arrow())

    def _beside_new_answers(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows with the answers that they were imported with as `imported_response`, where the
        responder answered all anew."""
        if self._columns.answers != "all":
            return rows
        lean = self._columns.lean(self.imports["response"], "response")
        old = lean.texts(rows.select("id", "of"), ["response"])
        old = old.rename({"response": "imported_response"})
        return rows.join(old, on="id", how="left", maintain_order="left")

    # -- likeness ----------------------------------------------------------------------------------

    @cached_property
    def vectors(self) -> Vectors:
        """Embeddings of the instructions, for arms that choose by likeness."""
        return Vectors(self._embedded, self._embedded_texts, self._compared)

    def _embedded(self, ids: pl.Series) -> NDArray[np.float32]:
        """Unit vectors of the instructions of these ids, float32 [n, d], by the model that
        neighbours are found with; embedded once and kept."""
        drawn = self.drawn().select("id", "of")
        wanted = drawn.join(ids.to_frame("id"), on="id", how="semi", maintain_order="left")
        texts = itertools.chain.from_iterable(self.instructions(wanted))
        vectors = self._vectors_of(wanted["id"].to_list(), texts, wanted["of"].to_list())
        place = {name: at for at, name in enumerate(wanted["id"])}
        return vectors[[place[name] for name in ids]]

    def _compared(
        self, ids: pl.Series, queries: Path
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Vectors of the conversations of these ids and of the queries in a file, by what the
        model that is trained holds of them, float32 [n, d] and [q, d]."""
        student = self.context.student
        if student is None:
            raise ValueError("no model is trained")  # which the recipe's check refuses
        frame = self.frame()
        rows = ids.to_frame("id").join(frame, on="id", how="left", maintain_order="left")
        parts = (self.texts(part, ["instruction", "response"]) for part in rows.iter_slices(SLICE))
        pairs = (pair(*row) for part in parts for row in part.drop("id").iter_rows())
        asked, resolve = read_queries(queries), self.context.resolve
        return compared(self.root, ids.to_list(), pairs, asked, student, resolve)

    def _embedded_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of texts (labels) by the same model, float32 [n, d]."""
        return self._vectors_of(texts, texts)

    def _vectors_of(
        self,
        names: Sequence[str],
        texts: Iterable[str | None],
        known_as: Sequence[str] | None = None,
    ) -> NDArray[np.float32]:
        near = self.config.tags.neighbors
        model, service = (
            services.model_of(near, self.context),
            services.service_of(near, self.context),
        )
        return embeddings.vectors(
            self.root, names, texts, model, service=service, known_as=known_as
        )
