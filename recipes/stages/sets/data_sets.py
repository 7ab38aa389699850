"""Someone else's data as a pool: imported once by content, measured as the recipe's `synth.tags`
say wherever an arm reads a column that the data lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from core.columns import FAILED, OK
from core.errors import UserError
from core.store import digest
from recipes.schema import Recipe
from recipes.stages.eval_prompts import eval_prompts
from recipes.stages.session import REUSE, RUN, Session
from recipes.stages.tokens import knows_tools, student_of, token_counter
from recipes.stages.walk import Arms
from synth.config.rows import ImportConfig
from synth.context import Context, Resolve
from synth.filters.arm import Choosing
from synth.filters.rule import Rule, columns_of
from synth.filters.schedule import TokenCounter, wanted
from synth.pool import draw, spending
from synth.pool import measure as measuring
from synth.pool.pool import Pool
from synth.published import files
from train.data.tools import UNKNOWN

_OF_DRAWING: dict[str, Any] = {
    "grid": None,
    "first_token": None,
    "system_prompts": (),
    "category_balance": None,
    "pre_query_template": None,
    "sanitize": None,
    "turns": 1,
    "end_with": "assistant",
    "turns_system_prompt": None,
    "preferences": None,
    "heldout": 0.0,
}
"""Settings of the recipe's own pool that say nothing of other people's rows."""

Seeded = Sequence[tuple[Rule, Sequence[int]]]
"""Rules, each with the seeds that it is drawn for."""


@dataclass(frozen=True)
class DataSet:
    """Someone else's data that arms choose from. `name` is that of the first of them, `choosing`
    what it says of the data, `rules` what the arms and parts of mixtures resolve to."""

    name: str
    choosing: Choosing
    pool: Pool
    rules: Mapping[str, Rule]
    recipe: Recipe
    arms: Arms
    resolve: Resolve
    planning: bool

    def unfit(self, frame: pl.DataFrame) -> dict[str, int]:
        """How many rows have tool turns that the student's template does not write out, by that
        reason."""
        rows = int(frame["tool_turns"].fill_null(False).sum())
        train = self.recipe.train
        if not rows or train is None or knows_tools(train, self.resolve):
            return {}
        return {UNKNOWN: rows}

    @property
    def at(self) -> str:
        """Where the recipe names it, for error sentences."""
        return self.arms.data[self.name].at

    @property
    def source(self) -> str:
        """As the recipe names it."""
        return str(self.choosing.data)

    def tokens(self, rules: Sequence[Rule]) -> TokenCounter | None:
        """Counts the student's tokens of its rows, where one of the rules has a budget in them."""
        of_these = replace(self.arms, rules={rule.name: rule for rule in rules})
        train, planning = self.recipe.train, self.planning
        return token_counter(train, of_these, self.pool, self.resolve, planning=planning)


def data_sets(session: Session, recipe: Recipe, arms: Arms, resolve: Resolve) -> dict[str, DataSet]:
    """The data of every arm, and of every part of a mixture ("MIXTURE/PART"), that is someone
    else's; arms of one source share its rows."""
    root = session.store.root
    sources = {name: _source(rule.at, arms.choosing(name)) for name, rule in arms.data.items()}
    keys = {name: digest(source) for name, source in sources.items()}
    found: dict[str, DataSet] = {}
    opened: dict[str, DataSet] = {}
    for name, key in keys.items():
        if key not in opened:
            config = recipe.synth.model_copy(update={**_OF_DRAWING, "rows": sources[name]})
            prompts = eval_prompts(recipe.eval, arms, root, planning=session.planning)
            student = student_of(recipe.train, arms, resolve)
            context = Context(root, resolve, prompts, recipe.folder / "spent", student)
            pool = Pool(config, context)
            rules = {other: rule for other, rule in arms.data.items() if keys[other] == key}
            choosing = arms.choosing(name)
            planning = session.planning
            opened[key] = DataSet(name, choosing, pool, rules, recipe, arms, resolve, planning)
        found[name] = opened[key]
    return found


def _source(at: str, choosing: Choosing) -> ImportConfig:
    """What an arm's `data` is as rows to import. Raises UserError for a file that is not there."""
    try:
        files.sources(str(choosing.data))
    except UserError as error:
        raise UserError(f"{at}.data: {error}") from error
    stated = {"import": choosing.data, "answers": choosing.answers, **choosing.spec()}
    return ImportConfig.model_validate(stated)


def imported(session: Session, one: DataSet) -> bool:
    """Read the data into the store, once by content; false in a plan where that is still to be
    done."""
    pool, name = one.pool, f"instructions/{one.name}"
    if any(step.name == name for step in session.steps):
        return not (session.planning and pool.to_import())
    if not pool.to_import():
        rows = len(pool.drawn())
        session.note(name, REUSE, f"{rows} rows of {one.source}")
        return True
    session.note(name, RUN, f"{one.source} is not read to its end yet")
    if session.planning:
        return False
    cell = pool.cells["instruction"]
    tracked = session.tracker.stage(name, "instructions", digest(cell), {"cell": cell})
    with pool.instruction.alone(), tracked as log:
        counts = draw.draw(pool, session.servers, log)
        log.finish({"counts": counts, "output": digest(pool.drawn()["of"].to_list())})
    if counts["failed"]:
        failed = _failed(pool.drawn())
        shown = "; ".join(f"{rows} x {reason}" for reason, rows in failed.items())
        session.log.say(
            f"{one.name}: {sum(failed.values())} of {len(pool.drawn())} rows of {one.source} are "
            f"failed rows and left out ({shown})"
        )
    return True


def unusable(one: DataSet) -> dict[str, int]:
    """How many rows of the data cannot be used, by reason, the most frequent first: they failed
    when they were read, or have turns that the student's template does not know."""
    drawn = one.pool.drawn()
    known = drawn.filter(pl.col("status") == OK)
    return _failed(drawn) | one.unfit(known)


def _failed(drawn: pl.DataFrame) -> dict[str, int]:
    """How many rows of an import failed, by reason, the most frequent first."""
    failed = drawn.filter(pl.col("status") == FAILED)["reason"].fill_null("no reason given")
    # "no response (set.jsonl line 7)": every row has a place of its own
    reasons = failed.str.replace(r" \([^()]*\)$", "").str.replace(r"^the id .* occurs twice$", "")
    counts = Counter(reason or "an id occurs twice" for reason in reasons)
    return dict(counts.most_common())


def measured(session: Session, one: DataSet, rules: Seeded) -> pl.DataFrame | None:
    """The rows with everything that these rules want, or None in a plan where cells are missing."""
    with nullcontext() if session.planning else one.pool.instruction.alone():
        return _measured(session, one, rules) if imported(session, one) else None


def _measured(session: Session, one: DataSet, rules: Seeded) -> pl.DataFrame | None:
    """The same of data that is read."""
    pool, name = one.pool, f"measure/{one.name}"
    texts = columns_of(rule for rule, _ in rules)
    tokens = one.tokens([rule for rule, _ in rules])
    frame = _fitting(one, pool.frame(texts))
    if frame.is_empty():
        raise UserError(
            f"{one.at}.data: {one.source} has no usable row "
            f"({_shown(unusable(one)) or 'it is empty'}); `magpie import` shows how it is read."
        )
    wants = wanted(frame, rules, tokens, pool.complete, pool.vectors)
    if not wants:
        if not any(step.name == name for step in session.steps):
            session.note(name, REUSE, "")
        return frame
    cells = ", ".join(f"{len(ids)} of {len(frame)} {measure}" for measure, ids in wants.items())
    known = [f"missing now: {cells}; more may follow from them", spending.forecast(pool, wants)]
    session.note(name, RUN, "; ".join(filter(None, known)))
    if session.planning:
        return None
    key = digest([pool.cells, [rule.name for rule, _ in rules]])
    with session.tracker.stage(name, "measure", key, {"cells": pool.cells}) as log:
        counts = measuring.measure(pool, rules, session.servers, log, tokens)
        frame = _fitting(one, pool.frame(texts))
        log.finish({"counts": counts, "output": digest(sorted(frame["id"].to_list()))})
    return frame


def _fitting(one: DataSet, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows that the student's template can write out."""
    return frame.filter(~pl.col("tool_turns").fill_null(False)) if one.unfit(frame) else frame


def _shown(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{rows} x {reason}" for reason, rows in counts.items())
