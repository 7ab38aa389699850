"""`magpie tag`: measure any file, by a recipe's tags or without one, and write its rows with the
new columns beside.

What is measured lies in a store, so a killed run goes on where it was, and the same file asked for
one more column pays for that column only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from core import models
from core.columns import OK
from core.errors import UserError, nearest
from core.models import Model
from core.servers import Servers
from core.tracking import Log
from recipes.exchange.import_data import checked, spare
from recipes.schema import load
from recipes.stages.eval_prompts import prompts_file
from synth.config.models import ModelConfig
from synth.config.rows import ImportConfig, Reading
from synth.config.synthesis import SynthConfig
from synth.config.tags import TagsConfig
from synth.context import Context
from synth.measures import Measures
from synth.pool import draw, measure
from synth.pool.pool import Pool
from synth.pool.spending import asked as asks
from synth.published.files import parts
from synth.published.forms import Form
from synth.published.rows import BATCH, Writer, checked_ending, read
from synth.tags.asking import own

NOBODY = "no model"
"""Stands where a model is needed and none is named."""
FORMS = ("magpie", "23", "25")
_COST = ("tokens", "prompt_tokens", "finish_reason", "base_finish_reason")
_NO_TAGS = {
    "text": "it is how a row was drawn, no tag",
    "response": "an answer is no tag; `magpie answer` answers",
    "turns": "further turns are no tag; a recipe's `synth.turns` makes them",
    "sanitized": "a text that is sanitized is another one; say `synth.sanitize` in a recipe",
}


_PROMPTS = "give --prompts FILE, or a --recipe with `eval` or `synth.tags.decontaminate`"
_NEEDS = {
    "overlap": _PROMPTS,
    "eval_distance": _PROMPTS,
    "base_response": "say `synth.tags.base` in a recipe, and give it as --recipe",
    "reward_difference": "say `synth.tags.base` and `synth.tags.reward` in a recipe (--recipe)",
}


@dataclass(frozen=True)
class Tagger:
    """With what rows are measured: a recipe's `synth.tags`, or models by name."""

    recipe: str | None = None
    model: str | None = None
    """The tagger, in place of the recipe's teacher."""
    urls: Sequence[str] = ()
    """Servers of it that run already."""
    chats: bool = False
    """It is a service that chats."""
    mode: str | None = None
    """Of the shipped LLM tags: label or explain."""
    embedding: str | None = None
    prompts: str | None = None
    """A JSONL of evaluation prompts that instructions are compared with."""

    def config(self, source: str, how: Reading, limit: int | None) -> SynthConfig:
        """A synthesis over the rows of a source. Raises UserError for settings that are none."""
        rows = ImportConfig.model_validate(
            {**how.spec(), "import": source, "limit": limit, "answers": "missing", "tags": "anew"}
        )
        known = load(self.recipe).recipe.synth if self.recipe else None
        base = known or SynthConfig(teacher=ModelConfig(model=NOBODY))
        teacher = self._model() or base.teacher
        tags = self._tags(base.tags)
        return SynthConfig(
            teacher=teacher, responder=base.responder, rows=rows, tags=tags, response=base.response
        )

    def eval_prompts(self, root: Path) -> Path | None:
        """The prompts that the recipe evaluates on, as a file; None without a recipe."""
        recipe = load(self.recipe).recipe if self.recipe else None
        return prompts_file(recipe.eval, root) if recipe is not None and recipe.eval else None

    def _model(self) -> ModelConfig | None:
        if self.model is None:
            if self.urls:
                raise UserError("--url is where --model is served; name the model too.")
            return None
        server = {"urls": list(self.urls)} if self.urls else {}
        api = "chat" if self.chats else "completions"
        if self.chats and not self.urls:
            raise UserError("--chat is for a service; give its address with --url.")
        return ModelConfig.model_validate({"model": self.model, "server": server, "api": api})

    def _tags(self, tags: TagsConfig) -> TagsConfig:
        """The recipe's settings with what the command line replaces."""
        given: dict[str, Any] = {}
        if self.mode is not None:
            if self.mode not in ("label", "explain"):
                raise UserError(f"--mode {self.mode}: it is label or explain.")
            for name in ("quality", "difficulty", "category", "pair_score"):
                given[name] = getattr(tags, name).model_copy(update={"mode": self.mode})
        if self.embedding is not None:
            given["neighbors"] = tags.neighbors.model_copy(update={"model": self.embedding})
        if self.prompts is not None:
            given["decontaminate"] = tags.decontaminate.model_copy(update={"file": self.prompts})
        return tags.model_copy(update=given)


@dataclass(frozen=True)
class Written:
    """Where tagged rows go and in which form, and where what is measured lies."""

    out: Path
    store: Path | None = None
    form: str = "same"

    @property
    def root(self) -> Path:
        """The store: the one that is given, else a folder beside the file."""
        return self.store or self.out.with_name(f"{self.out.name}.store")

    def check(self, source: str) -> None:
        """Raises UserError for a file that cannot be written, or would replace its source."""
        checked_ending(self.out)
        if self.form not in ("same", *FORMS):
            raise UserError(f"--form {self.form}: no such form{nearest(self.form, FORMS)}.")
        spare(source, self.out)


@dataclass(frozen=True)
class Asked:
    """What `--columns` names: measures, and the columns that are to be written."""

    measures: Sequence[str]
    columns: Sequence[str]

    @classmethod
    def of(cls, given: str, known: Measures) -> Asked:
        """`given` names measures or columns of theirs. Raises UserError for one that there is not,
        and for what is no tag."""
        measures: dict[str, None] = {}
        columns: dict[str, None] = {}
        for each in filter(None, (name.strip() for name in given.split(","))):
            there = [*known.table, *known.columns]
            if each not in there:
                raise UserError(f"--columns {each}: there is no such column{nearest(each, there)}.")
            measure = each if each in known.table else known.columns[each].measure
            of_text = measure in ("text", "response")
            if measure in _NO_TAGS and not (of_text and _from_words(each, known)):
                raise UserError(f"--columns {each}: {_NO_TAGS[measure]}.")
            columns |= dict.fromkeys(_filled(each, measure, known) if of_text else ())
            if not of_text:
                measures[measure] = None
                columns |= dict.fromkeys([*known.table[measure].columns, *_besides(measure, known)])
        if not columns:
            raise UserError("--columns names nothing; write it as --columns quality,language,pii.")
        return cls(list(measures), list(columns))


def _from_words(column: str, known: Measures) -> bool:
    return column == "text" or known.columns[column].field.source == "words"


def _filled(name: str, measure: str, known: Measures) -> list[str]:
    """The columns that are worked out of words: one, or all of the instruction's."""
    if name != measure:
        return [name]
    return [c for c, each in known.table[measure].columns.items() if each.source == "words"]


def _besides(measure: str, known: Measures) -> list[str]:
    """What of a cell is worth writing besides its columns: not what it cost."""
    return [name for name in known.table[measure].beside if name not in _COST]


@dataclass(frozen=True)
class Tagged:
    """A pool whose rows were measured, as a frame, and what of it was asked for."""

    pool: Pool
    frame: pl.DataFrame
    asked: Asked

    def figures(self) -> dict[str, dict[str, Any]]:
        """For each measure: rows measured, failed by reason, and without (that cannot have it)."""
        shown = {}
        for name in self.asked.measures:
            status = self.frame[f"status:{name}"]
            shown[name] = {
                "measured": int((status == OK).sum()),
                "failed": self.pool.reasons(name, self.frame),
                "without": status.null_count(),
            }
        return shown

    def columns(self) -> list[str]:
        """The columns that were asked for and have a value in some row."""
        known = self.pool.measures
        long = known.long_columns(c for c in self.asked.columns if c in known.columns)
        return [c for c in self.asked.columns if self._has_value(c, long)]

    def _has_value(self, column: str, long: Collection[str]) -> bool:
        if column not in long:
            there = column in self.frame.columns
            return there and self.frame[column].null_count() < len(self.frame)
        held = self.pool.column(self.pool.measures.columns[column].measure, self.frame)
        parts = held.parts() if held is not None else []
        found = [
            pl.scan_parquet(p, glob=False).select(pl.col(column).is_not_null().any()) for p in parts
        ]
        return any(each.collect().item() for each in found)

    def values(self, ids: pl.Series, columns: Sequence[str]) -> pl.DataFrame:
        """These columns of rows, in the order of their ids; labels as text, null where there is no
        value."""
        rows = self.frame.filter(pl.col("id").is_in(ids.implode()))
        texts = [c for c in columns if c not in rows.columns]
        rows = self.pool.with_texts(rows, texts).select("id", *columns)
        labels = [c for c, kind in rows.schema.items() if isinstance(kind, pl.Enum)]
        rows = rows.with_columns(pl.col(labels).cast(pl.String))
        return ids.to_frame("id").join(rows, on="id", how="left", maintain_order="left").drop("id")


def write(tagged: Tagged, source: str, how: Reading, limit: int | None, written: Written) -> int:
    """Write the rows of the source with what was measured; returns how many. Raises UserError where
    the file cannot hold them."""
    rows = _same(tagged, source, how)
    if written.form != "same":
        rows = _in_form(tagged, source, how, limit)
    form: Form = "magpie" if written.form == "same" else checked(written.form)
    with Writer(written.out, form) as writer:
        for frame in rows:
            writer.add(frame)
    return writer.rows


def measured(config: SynthConfig, columns: str, tagger: Tagger, root: Path) -> Tagged:
    """The rows of a source with what was asked for; what the store `root` holds already is not
    measured again."""
    asked = Asked.of(columns, own.measures(config.tags))
    _check_models(config, asked.measures)
    log = Log()
    with Servers(log, root / "logs") as servers:
        context = Context(root, cache(_resolved), tagger.eval_prompts(root), root / "spent")
        pool = Pool(config, context)
        _check_possible(pool, asked.measures)
        with pool.instruction.alone():
            draw.draw(pool, servers, log)
            measure.every(pool, asked.measures, servers, log)
        return Tagged(pool, pool.frame(), asked)


def _check_possible(pool: Pool, names: Sequence[str]) -> None:
    """Raises UserError, before a row is read, for a measure that the settings give no way to
    have."""
    for name in names:
        if name not in pool.cells:
            how = _NEEDS.get(name, f"say `synth.tags.{name}` in a recipe, and give it as --recipe")
            raise UserError(f"--columns {name}: nothing says how to measure it; {how}.")


def _resolved(name: str, revision: str | None) -> Model:
    """A model; where none is named, one that nothing is asked of."""
    return (
        Model(name, name, models.UNRESOLVED) if name == NOBODY else models.resolve(name, revision)
    )


def _check_models(config: SynthConfig, names: Sequence[str]) -> None:
    """Raises UserError where a tag would be asked of a model and none is named."""
    for name in names:
        given = config.tags.ifd if name == "ifd" else asks(config, name)
        if (given or config.teacher).model == NOBODY and (name == "ifd" or given is not None):
            raise UserError(
                f"--columns {name} asks a model: name it with --model (and --url where it is "
                "served), or take a recipe's tags with --recipe."
            )


def _same(tagged: Tagged, source: str, how: Reading) -> Iterator[pl.DataFrame]:
    """The source's rows under its own names with our columns behind; a column of its that has the
    name of ours goes by `source_NAME`."""
    ids, columns = tagged.pool.drawn()["id"], tagged.columns()
    done = 0
    for part in parts(source, BATCH, how):
        frame = part.frame.head(len(ids) - done)
        if frame.is_empty():
            break
        here = tagged.values(ids.slice(done, len(frame)), columns)
        taken = {c: f"source_{c}" for c in columns if c in frame.columns}
        yield frame.rename(taken).hstack(here)
        done += len(frame)
    if done != len(ids):
        raise UserError(
            f"{source} has rows that are several of ours, or none: write them with --form magpie."
        )


def _in_form(
    tagged: Tagged, source: str, how: Reading, limit: int | None
) -> Iterator[pl.DataFrame]:
    """The rows as published forms have them, our columns in place of the source's."""
    columns = tagged.columns()
    for frame in read(source, limit, how=how, prompts=None):
        here = tagged.values(frame["id"], columns)
        yield frame.with_columns(here.get_columns())
