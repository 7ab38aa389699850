"""The pool: every row of one synthesis with every column measured so far, joined by id.

Which columns hold the cells follows from the recipe alone (model revisions, templates, prompts, sampling, VERSION of the code), never
from row counts or arms, so a pool grows and two recipes share it. Ids are fixed before generation: a row killed in mid-flight is made
again under the same id with the same sampling seed. A tag or response also remembers which text it is of (`of`), so that a column whose
instructions were made anew with other words counts as unmeasured instead of describing a text that is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import OK, Column
from core.models import Model
from core.store import canonical, digest, file_digest
from synth import generate, language, neighbors, tags, templates
from synth.config import CATEGORY, COLUMNS, DIFFICULTY, MEASURES, QUALITY, ImportConfig, ModelConfig, SynthConfig, TagConfig
from synth.filters import held_out

Resolve = Callable[[str, str | None], Model]
"""`core.models.resolve`, or a table of what was resolved before."""

_TOKENS = {"tokens": pl.Int64, "prompt_tokens": pl.Int64}
FIELDS_OF: dict[str, dict[str, Any]] = {
    "language": {"language": pl.String},
    "neighbors": {"min_neighbor_distance": pl.Float64, "repeat_count": pl.Int64, "min_similar_id": pl.String},
    "quality": {"input_quality": pl.Enum(QUALITY), "input_quality_rank": pl.Float64, "quality_explanation": pl.String, **_TOKENS},
    "difficulty": {"difficulty": pl.Enum(DIFFICULTY), "difficulty_rank": pl.Float64, "intent": pl.String, "knowledge": pl.String, **_TOKENS},
    "category": {"task_category": pl.Enum(CATEGORY), "other_task_category": pl.List(pl.String), **_TOKENS},
    "response": {"response": pl.String, "finish_reason": pl.String, **_TOKENS},
    "reward": {"instruct_reward": pl.Float64, "prompt_tokens": pl.Int64},
    "reward_difference": {"base_reward": pl.Float64, "reward_difference": pl.Float64},
    "safety": {"llama_guard_2": pl.String},
}
INSTRUCTION_FIELDS: dict[str, Any] = {
    "index": pl.Int64, "instruction": pl.String, "finish_reason": pl.String, "tokens": pl.Int64, "seed": pl.Int64,
    "temperature": pl.Float64, "top_p": pl.Float64, "sampling": pl.String, "model": pl.String, "revision": pl.String, "template": pl.String,
}  # fmt: skip


def digest_texts(texts: Sequence[str | None]) -> pl.Series:
    """A short digest of each text (what a cell is `of`)."""
    return pl.Series([hashlib.sha256((t or "").encode()).hexdigest()[:12] for t in texts], dtype=pl.String)


class Pool:
    """The columns of one synthesis under one store root.

    `models` resolves a model name to its revision. Reading needs no tokenizer and no GPU.
    """

    def __init__(self, root: Path, config: SynthConfig, resolve: Resolve) -> None:
        self.root, self.config = root, config
        self.imported = isinstance(config.rows, ImportConfig)
        self.teacher = resolve(config.teacher.model, config.teacher.revision)
        self.cells: dict[str, dict[str, Any]] = {"instruction": self._instruction_cell()}
        self.instruction = Column.open(root, "instruction", self.cells["instruction"], INSTRUCTION_FIELDS)
        self.columns: dict[str, Column] = {}
        for measure, fields in FIELDS_OF.items():
            cell = self._cell(measure, resolve)
            if cell is not None:
                self.cells[measure] = cell
                self.columns[measure] = Column.open(root, measure, cell, {"of": pl.String, **fields})
        self.imports: dict[str, Column] = {}
        if self.imported:
            self.imports = {m: Column.open(root, m, self.cells["instruction"], {"of": pl.String, **f}) for m, f in FIELDS_OF.items()}

    # -- keys -------------------------------------------------------------------------------------------------------------------------

    def _instruction_cell(self) -> dict[str, Any]:
        config = self.config
        if isinstance(config.rows, ImportConfig):
            path = Path(config.rows.import_).expanduser()
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
            return {"import": [file_digest(p) for p in files] or config.rows.import_}
        return {
            "teacher": self.teacher.revision if self.teacher.revision != "unresolved" else [self.teacher.name, "unresolved"],
            "system_prompt": config.system_prompt,
            "pre_query_template": config.pre_query_template,
            "sampling": config.instruction,
            "seed": config.seed,
            "VERSION": [generate.VERSION, templates.VERSION],
        }

    def _cell(self, measure: str, resolve: Resolve) -> dict[str, Any] | None:
        """What determines one cell of a measure, or None when the recipe gives no way to measure it."""
        tag: TagConfig | None = getattr(self.config.tags, measure, None) if measure in ("quality", "difficulty", "category") else None
        if tag is not None:
            model = self._revision(tag.model or self.config.teacher, resolve)
            prompt = digest(tags.prompt_text(measure, tag.mode, tag.prompt))[:16]
            return {"tagger": model, "mode": tag.mode, "prompt": prompt, "sampling": tag.sampling, "VERSION": tags.VERSION}
        if measure == "response":
            responder = self.config.responder or self.config.teacher
            version = [generate.VERSION, templates.VERSION]
            return {"responder": self._revision(responder, resolve), "sampling": self.config.response, "VERSION": version}
        if measure == "language":
            return {"languages": self.config.tags.languages, "VERSION": language.VERSION}
        if measure == "neighbors":
            near = self.config.tags.neighbors
            return {"model": resolve(near.model, None).revision, "threshold": near.threshold, "VERSION": neighbors.VERSION}
        if measure == "reward" and self.config.tags.reward is not None:
            return {"model": self._revision(self.config.tags.reward, resolve), "VERSION": tags.VERSION}
        return None

    @staticmethod
    def _revision(model: ModelConfig, resolve: Resolve) -> Any:
        found = resolve(model.model, model.revision)
        return found.revision if found.revision != "unresolved" else [found.name, "unresolved"]

    # -- rows -------------------------------------------------------------------------------------------------------------------------

    def planned(self) -> pl.DataFrame:
        """Every row that is to be drawn: [id, index, seed]; the id of an index never depends on how many rows are asked for."""
        assert isinstance(self.config.rows, int)
        base = canonical(self.cells["instruction"])
        prefix = hashlib.sha256(base.encode())
        ids, seeds = [], []
        for index in range(self.config.rows):
            row = prefix.copy()
            row.update(str(index).encode())
            ids.append(row.hexdigest()[:20])
            seeds.append(int.from_bytes(row.digest()[-4:]) % 2**31)
        return pl.DataFrame({"id": ids, "index": range(len(ids)), "seed": seeds}, schema={"id": pl.String, "index": pl.Int64, "seed": pl.Int64})

    def drawn(self) -> pl.DataFrame:
        """The instructions that exist and belong to this pool, failed ones included, by index."""
        held = self.instruction.read()
        if not self.imported:
            held = held.join(self.planned().select("id"), on="id", how="semi")
        elif isinstance(self.config.rows, ImportConfig) and self.config.rows.limit:
            held = held.filter(pl.col("index") < self.config.rows.limit)
        return held.sort("index")

    def missing_instructions(self) -> pl.DataFrame:
        """Rows still to be drawn: [id, index, seed]."""
        return self.planned().join(self.instruction.read().select("id"), on="id", how="anti")

    def neighbors_column(self, ids: Sequence[str]) -> Column:
        """The pool column of nearest neighbours: its key also holds the digest of the pool's ids and texts."""
        return Column.open(self.root, "neighbors", {**self.cells["neighbors"], "pool": digest(list(ids))}, FIELDS_OF["neighbors"])

    def frame(self) -> pl.DataFrame:
        """Every drawn row with every column a filter may name (null: unmeasured or failed) and `status:MEASURE` for each measure.

        Also `heldout` (by hash of id) and `reserved` (held out, or with the very instruction of a held-out row).
        """
        drawn = self.drawn().filter(pl.col("status") == OK).drop("status", "reason")
        rows = text_columns(drawn.rename({"finish_reason": "instruction_finish_reason", "tokens": "instruction_tokens"}))
        rows = rows.with_columns(digest_texts(rows["instruction"].to_list()).alias("of"))
        ids = rows["id"].to_list()
        for measure in MEASURES:
            if measure != "text":
                rows = self._join(rows, measure, ids)
            if measure == "response":
                pairs = zip(rows["instruction"].to_list(), rows["response"].to_list(), strict=True)
                rows = rows.with_columns(digest_texts([f"{i}\0{r}" for i, r in pairs]).alias("of_pair"))
        held = held_out(rows["id"], self.config.heldout)
        rows = rows.with_columns(held.alias("heldout"))
        taboo = rows.filter("heldout")["instruction"].implode()
        return rows.with_columns(pl.col("instruction").is_in(taboo).alias("reserved")).drop("of", "of_pair")

    def _join(self, rows: pl.DataFrame, measure: str, ids: list[str]) -> pl.DataFrame:
        fields = {n: d for n, d in FIELDS_OF[measure].items() if n not in _TOKENS}
        if measure == "neighbors" and measure in self.cells:
            cells = self.neighbors_column(ids).read().with_columns(pl.lit(None, pl.String).alias("of"))
            cells = pl.concat([cells, self.imports["neighbors"].read().select(cells.columns)]) if self.imported else cells
        else:
            sources = [c for c in (self.imports.get(measure), self.columns.get(measure)) if c is not None]
            frames = [c.read(ids) for c in sources]
            cells = pl.concat(frames) if frames else Column(self.root, {"of": pl.String, **FIELDS_OF[measure]}).schema.to_frame()
        kept = [n for n in cells.columns if n in fields or (measure == "response" and n in _TOKENS)]
        cells = cells.unique("id", keep="first", maintain_order=True)
        cells = cells.select("id", pl.col("of").alias("cell_of"), pl.col("status").alias("state"), *kept)
        rows = rows.join(cells, on="id", how="left", maintain_order="left")
        text = "of_pair" if MEASURES[measure].reads == "response" and measure != "response" else "of"
        valid = pl.col("state").is_not_null() & (pl.col("cell_of").is_null() | (pl.col("cell_of") == pl.col(text)))
        numbers = [n for n in kept if FIELDS_OF[measure].get(n) == pl.Float64]
        bad = pl.any_horizontal([pl.col(n).is_nan().fill_null(False) for n in numbers]) if numbers else pl.lit(False)
        state = pl.when(valid).then(pl.when(bad).then(pl.lit("failed")).otherwise(pl.col("state")))
        rows = rows.with_columns(state.alias(f"status:{measure}"))
        usable = pl.col(f"status:{measure}") == OK
        rows = rows.with_columns([pl.when(usable).then(pl.col(n)).alias(n) for n in kept]).drop("state", "cell_of")
        return _derived(rows, measure)


def text_columns(rows: pl.DataFrame) -> pl.DataFrame:
    """The free columns of the instruction, computed afresh from its text."""
    from synth import text

    found = text.instruction_columns(rows.select("id", "instruction", pl.col("instruction_finish_reason").alias("finish_reason")))
    return _add(rows, found)


def _derived(rows: pl.DataFrame, measure: str) -> pl.DataFrame:
    """Columns that follow from others of the same measure."""
    if measure == "neighbors":
        return rows.with_columns((pl.col("min_similar_id") != pl.col("id")).alias("near_duplicate"))
    if measure != "response":
        return rows
    from synth import text

    rows = rows.rename({"finish_reason": "response_finish_reason", "tokens": "response_tokens", "prompt_tokens": "response_prompt_tokens"})
    found = text.response_columns(rows.select("id", "response", pl.col("response_finish_reason").alias("finish_reason")))
    return _add(rows, found)


def _add(rows: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    new = [c for c in found.columns if c in COLUMNS and c not in rows.columns]
    return rows.join(found.select("id", *new), on="id", how="left", maintain_order="left")
