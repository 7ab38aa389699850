"""Judgments bought once: from the store where it has them, from the judge where not; and what
identifies a judge."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core import models
from core.columns import Column
from core.errors import UserError
from core.servers import Servers
from core.store import Counts, digest
from core.tracking import Log
from core.wire import ServerSpec
from eval.config import (
    AlpacaConfig,
    ArenaConfig,
    JudgeConfig,
    MTBenchConfig,
    RewardProtocol,
    WildBenchConfig,
)
from eval.judging import templates
from eval.judging.ask import FIELDS, Asker, Question, most_tokens
from eval.judging.journal import Journal, Purse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


VERSION = 1


def warn_of_change(counts: Counts, log: Log) -> None:
    """Say when `counts` has several models or fingerprints: the judge changed within one result."""
    for name in ("models", "fingerprints"):
        if len(counts[name]) > 1:
            log.say(
                f"warning: the judge returned {len(counts[name])} different {name} within one result: {', '.join(counts[name])}"
            )


def within_budget(judge: JudgeConfig, purse: Purse, bought: int, wanted: int) -> None:
    """Raise UserError when the budget stopped the asking."""
    if purse.stopped:
        raise UserError(
            f"the judge's budget of {judge.budget:g} ends here: {bought} of {wanted} judgments are bought, for "
            f"{purse.spent:.4g}, and kept; raise `budget` and run again."
        )


Judged = AlpacaConfig | ArenaConfig | WildBenchConfig | MTBenchConfig | RewardProtocol


Fields = Mapping[str, pl.DataType | type[pl.DataType]]


Bought = tuple[pl.DataFrame, dict[str, str], int, int]
"""Judgments (with the value fields of their column), why by id for those that are not settled, how
many were asked for, how many the store had."""


def buy(
    protocol: Judged,
    judge: JudgeConfig,
    questions: Sequence[Question],
    root: Path,
    purse: Purse,
    servers: Servers,
    log: Log,
    fields: Fields = FIELDS,
) -> Bought:
    """The judgments of `questions` from the store's column of this judge and protocol, those that
    it lacks asked for and kept there.

    `fields` are the column's value fields. What `purse` has spent before counts too. Raises
    UserError when not one of the judgments asked for came back.
    """
    column = Column.open(root, f"judgments-{protocol.kind}", determines(judge, protocol), fields)
    names = [question.id for question in questions]
    reasons: dict[str, str] = {}
    with Journal(column) as journal:
        stored = column.read(names)
        purse.spent += purse.cost(
            int(stored["prompt_tokens"].sum() or 0), int(stored["tokens"].sum() or 0)
        )
        known = set(stored["id"])
        missing = [question for question in questions if question.id not in known]
        log.progress(len(known), len(questions), "judgments")
        if missing:
            log.say(_announcement(judge, protocol, missing, len(known), purse))
            tokenizer, path, name = _identity(judge)
            asker = Asker(judge, protocol, tokenizer, column, journal, purse, log, name)
            reasons = asker.ask(
                servers.serve(ServerSpec(model=path, **judge.server)),
                missing,
                len(known),
                len(questions),
            )
            stored = column.read(names)
        journal.keep = (
            bool(reasons) or purse.stopped
        )  # first turns that were paid for, of judgments that are not settled
    if reasons and len(reasons) == len(missing) and not purse.stopped:
        why = next(iter(reasons.values()))
        raise UserError(
            f"the judge {judge.model} gave no judgment on any of {len(missing)} questions; the first reason: {why}"
        )
    return stored, reasons, len(missing), len(known)


def _identity(judge: JudgeConfig) -> tuple[PreTrainedTokenizerBase | None, str, str | None]:
    """The judge's tokenizer (when it is asked by token ids), its name in requests, and the name to
    record (None: what the server says)."""
    hosted = bool(judge.server.get("urls"))
    if hosted and judge.asks_by == "chat":
        return None, judge.model, None
    path = models.resolve(judge.model, judge.revision).path
    name = None if hosted else Path(judge.model).name if Path(judge.model).is_dir() else judge.model
    return models.tokenizer(path) if judge.asks_by == "completions" else None, path, name


def determines(judge: JudgeConfig, protocol: Judged) -> dict[str, Any]:
    """What a judgment depends on besides its texts: who judges, how it is asked, whose rules read
    it, the version of this code."""
    who: dict[str, Any] = {"model": judge.model, "revision": judge.revision}
    if not judge.server.get("urls"):
        found = models.resolve(judge.model, judge.revision)
        who = (
            {"revision": found.revision}
            if Path(found.path).is_dir()
            else {"model": found.name, "revision": found.revision}
        )
    said = {"version": VERSION, "judge": who, "max_answer_characters": judge.max_answer_characters}
    if (
        isinstance(protocol, AlpacaConfig) and protocol.mode == "reward"
    ):  # scores of single answers: no prompt, no codes, no sampling
        return {**said, "mode": "reward"}
    elsewhere = {
        "references",
        "reward_prompt",
        "margin",
    }  # WB-Reward's, which asks by a protocol of its own
    shared = {
        "prompts",
        "answers",
        "baseline",
        "judge",
        "judges",
        "prompt",
        "order",
        "order_seed",
        "limit",
    }
    own = protocol.model_dump(mode="json", exclude=shared | elsewhere)
    named = {"": protocol.prompt} if isinstance(protocol.prompt, str) else protocol.prompt
    pairwise = isinstance(
        protocol, (AlpacaConfig, ArenaConfig)
    )  # whose slots are known here; eval.ratings knows the others'
    text = {
        name: templates.template(name).text if pairwise else templates.read(name)[1]
        for name in named.values()
    }
    own["prompt"] = {category: digest(text[name]) for category, name in named.items()}
    return {**said, "api": judge.asks_by, **own}


def model_shown_first(instruction: str, seed: str = "0") -> bool:
    """AlpacaEval's order: drawn once an instruction, so that every model sees the same. True shows
    the model's answer before the baseline's.

    The seed text is that of alpaca_eval's PairwiseAnnotator ("is_switched_outputs" + instruction +
    seed); with seed 0 it gives the order of all published annotations.
    """
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]


def shorten(text: str, judge: JudgeConfig) -> str:
    """An answer as the judge sees it: cut, with a note, where it is longer than
    `max_answer_characters`."""
    limit = judge.max_answer_characters
    return (
        text
        if len(text) <= limit
        else f"{text[:limit]}\n[cut here: the first {limit} of {len(text)} characters are shown]"
    )


def read_answers(folder: Path) -> dict[str, tuple[str | None, str]]:
    """(answer or None, why none) by prompt id, from answers.parquet of a folder."""
    path = folder / "answers.parquet"
    try:
        frame = pl.read_parquet(path, columns=["id", "answer", "status", "reason"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read as answers ({error}); make them first.") from error
    return {i: (a if s == "ok" else None, r or "") for i, a, s, r in frame.iter_rows()}


def _announcement(
    judge: JudgeConfig, protocol: Judged, missing: list[Question], known: int, purse: Purse
) -> str:
    size = sum(len(text) for q in missing for text in q.values.values()) + sum(
        len(c) for q in missing for _, c in q.shape.messages
    )
    calls, most = len(missing), len(missing) * most_tokens(protocol.sampling)
    line = f"judge {judge.model}: {calls} to ask, {known} in the store; about {size // 4} prompt tokens, at most {most} generated"
    return line + (
        f", so at most about {purse.cost(size // 4, most):.4g}; spent before: {purse.spent:.4g}"
        if judge.prices
        else ""
    )
