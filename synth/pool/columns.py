"""The columns that hold a pool's cells, and what determines them.

That follows from the recipe alone (model revisions, templates, prompts, sampling, VERSION of the
code), never from row counts or arms, so a pool grows and two recipes share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.columns import Column
from core.files import remembered_digest
from core.store import canonical
from synth.chat import templates
from synth.chat.families import has_plain_headers, system_prompt_of
from synth.chat.pre_query import STOP_STRINGS
from synth.config.rows import ImportConfig
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.generate import single_turn
from synth.generate.system_prompts import steered
from synth.measures import POOLED, Measure
from synth.pool import imported_answers
from synth.pool.computed import computed
from synth.pool.short_columns import Lean, lean_of
from synth.published import to_ours
from synth.tags.asking import own as own_columns

if TYPE_CHECKING:
    from synth.measures import PolarsTypes

_AT_ONCE = 100_000
"""Rows in memory as Python's own objects."""

INSTRUCTION_FIELDS: PolarsTypes = {
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
    "stop": pl.String,
    "system_prompt": pl.String,
    "thinking": pl.String,
    "licence": pl.String,
    "tool_turns": pl.Boolean,
}
"""What is stored of a draw, or of an imported row (its licence, where its file states one,
and whether its conversation has tool turns)."""


class PoolColumns:
    """The columns of one synthesis, by measure: `own` that this recipe fills (those of the whole
    pool aside), `imports` that hold what imported rows brought."""

    def __init__(self, config: SynthConfig, context: Context) -> None:
        """Nothing is opened or written: a column is a folder's name until it is read or filled."""
        self.config, self.root = config, context.root
        self.measures = own_columns.measures(config.tags)
        self.computed = computed(config.tags)
        self.determines = {"instruction": _instruction_determines(config, context)}
        for measure, each in self.computed.items():
            determines = each.determines(config, context)
            if determines is not None:
                self.determines[measure] = determines
        drawn = self.determines["instruction"]
        self.instruction = Column.open(self.root, "instruction", drawn, INSTRUCTION_FIELDS)
        own = [m for m in self.computed if m in self.determines and m not in POOLED]
        self.own = {m: self._open(m, self.determines[m]) for m in own}
        self.imports: dict[str, Column] = {}
        if isinstance(config.rows, ImportConfig):
            self.imports = {m: self._open(m, self._brought(m)) for m in self.computed}
        self.answers = imported_answers.wanted(config)
        self.tags = config.rows.tags if isinstance(config.rows, ImportConfig) else "keep"
        self._lean: dict[Path, Lean] = {}
        self._pooled: tuple[pl.DataFrame, str] | None = None

    def of(self, measure: str, rows: pl.DataFrame) -> Column | None:
        """Where new cells of a measure go; None when the recipe gives no way to measure it.

        `rows`: the whole pool's frame. The key of a measure of the whole pool (nearest neighbours)
        also holds the digest of its ids and texts.
        """
        if measure not in POOLED:
            return self.own.get(measure)
        if measure not in self.determines:
            return None
        return self._open(measure, {**self.determines[measure], "pool": self._digest(rows)})

    def _digest(self, rows: pl.DataFrame) -> str:
        """`digest` of the ids and of the digests of texts of all rows, as two lists; worked out
        once for the same ones, and with few of them in memory as Python's own objects."""
        whole = rows.select("id", "of")
        if self._pooled is None or not self._pooled[0].equals(whole):
            made = hashlib.sha256(b"[")
            for before, name in ((b"[", "id"), (b",[", "of")):
                made.update(before)
                for start in range(0, len(whole), _AT_ONCE):
                    listed = canonical(whole[name][start : start + _AT_ONCE].to_list())[1:-1]
                    made.update(f"{',' if start else ''}{listed}".encode())
                made.update(b"]")
            made.update(b"]")
            self._pooled = (whole, made.hexdigest())
        return self._pooled[1]

    def _open(self, measure: str, determines: Mapping[str, Any]) -> Column:
        return open_column(self.root, measure, determines, self.measures.table[measure])

    def _brought(self, measure: str) -> dict[str, Any]:
        """What determines the cells that imported rows bring: the files, and of a column of the
        recipe's own what it may hold."""
        files = self.determines["instruction"]
        own = self.config.tags.own.get(measure)
        return files if own is None else {**files, "own": own.holds}

    def lean(self, column: Column, measure: str) -> Lean:
        """A column without its long texts; what was read of it is kept."""
        if column.folder not in self._lean:
            self._lean[column.folder] = lean_of(
                column, measure, self.config.sanitize, self.measures
            )
        return self._lean[column.folder]

    def sources(self, measure: str) -> list[Lean]:
        """The columns that hold a measure's cells, imported ones first."""
        if measure == "text":
            return [self.lean(self.instruction, "instruction")]
        every = [self.imports, self.own]
        anew = self.tags == "anew" and measure not in ("response", "turns")
        if anew or (measure == "response" and self.answers == "all"):
            every = [self.own]
        held = [columns[measure] for columns in every if measure in columns]
        return [self.lean(column, measure) for column in held]

    def counted(self, lean: Lean, measure: str, without: Collection[str] = ()) -> pl.DataFrame:
        """The cells of one of a measure's columns that count, `without` some of their fields: where
        the responder answers what has no answer, of imported answers only those that are there."""
        cells = lean.read(without)
        if measure == "response" and lean.column is self.imports.get(measure):
            return imported_answers.there(cells, self.answers)
        return cells


def open_column(
    root: Path, measure: str, determines: Mapping[str, Any], declared: Measure
) -> Column:
    """The column of a measure whose cells follow from `determines`."""
    return Column.open(root, measure, determines, {"of": pl.String, **declared.stored})


def _instruction_determines(config: SynthConfig, context: Context) -> dict[str, Any]:
    """What determines an instruction: what it is drawn with, or the files that it is imported
    from."""
    if isinstance(config.rows, ImportConfig):
        path = Path(config.rows.import_).expanduser()
        held = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        digests = [remembered_digest(p, context.root / "digests") for p in held]
        read = {"read": how} if (how := config.rows.spec()) else {}
        return {"import": digests or config.rows.import_, "VERSION": to_ours.VERSION, **read}
    determines = {
        "teacher": context.revision(config.teacher),
        "system_prompt": system_prompt_of(config.teacher.model, config.system_prompt),
        "pre_query_template": config.pre_query_template,
        "sampling": config.instruction,
        "seed": config.seed,
        "VERSION": [single_turn.VERSION, templates.VERSION],
    }
    if config.seeds != "per_row":
        determines["seeds"] = config.seeds
    if has_plain_headers(config.teacher.model):
        determines["stop_strings"] = STOP_STRINGS
    if config.system_prompts:
        prompts = steered(config.system_prompts)
        determines["system_prompts"] = [[p.text, p.weight] for p in prompts]
    if config.first_token:
        determines["first_token"] = config.first_token.model_dump(exclude_defaults=True)
    return determines
