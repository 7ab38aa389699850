"""Judging, whatever the protocol: items are settled from the store where it has their judgments,
by the judge where not, and written as one table.

A judgment is named by what it is about (judge prompt, prompt, what is shown) and lives in a column
of the store keyed by who judged and how, so that it is never bought twice, whichever recipe, arm or
seed asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from core import models
from core.columns import OK, Column
from core.errors import UserError
from core.files import write_atomic
from core.sending.chat import most_tokens
from core.sending.purse import Bill, Purse
from core.store import Counts, digest
from core.tracking import Log
from eval.judging import templates
from eval.judging.asking.ask import FIELDS, Asked, Asker, Fields, Means, Question
from eval.judging.asking.attempts import Attempts, question_of
from eval.judging.asking.journal import Cell, Journal, Row
from eval.judging.asking.texts import Answer
from eval.judging.verdicts import Judged
from eval.protocols import AlpacaConfig, JudgeConfig, PairwiseProtocol, RatedProtocol

VERSION = 2
NOT_ASKED = {
    "prompts",
    "answers",
    "baseline",
    "judge",
    "judges",
    "judges_share",
    "share",
    "first",
    "prompt",
    "order",
    "order_seed",
    "limit",
    "data",
    "head_to_head",
    "references",
    "reward_prompt",
    "margin",
}
"""Settings of a protocol that are no part of how a question is asked, or count by their content;
WB-Reward asks by a protocol of its own."""

STATUS: Fields = {"judgment": pl.String, "status": pl.String, "reason": pl.String}
"""What every table ends with: `judgment` is the id in the store (null when nobody was asked)."""


@dataclass(frozen=True)
class Item:
    """One thing to be judged: by a `question`, settled without a judge (`settled` has the columns
    that a judge would fill), or impossible for a `reason`. `row` has the columns known before."""

    row: Row
    question: Question | None = None
    settled: Row | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Wanted:
    """All that is to be judged for one table, how many answers are shown shortened, and how many
    without the thoughts that the model wrote before them."""

    items: Sequence[Item]
    cut: int
    thoughts: int = 0


@dataclass(frozen=True)
class Bought:
    """Judgments (with the value fields of their column), why by id for those that are not settled,
    how many were asked for, how many the store had."""

    judgments: pl.DataFrame
    reasons: Mapping[str, str]
    asked: int
    known: int
    again: Set[str] = frozenset()
    """The ids that are not settled because the server was at fault: the next run asks again."""


@dataclass(frozen=True)
class Form:
    """How the judgments of a protocol are written: `name`.parquet with these columns, and what
    determines them as JSON in the file `how`."""

    name: str
    how: str
    columns: Fields
    value: Callable[[Row, Row], Row] = lambda row, cell: {}
    """What a judgment (a cell of the column) says about an item (its `row`)."""
    counts: Callable[[pl.DataFrame], Counts] = lambda table: {}
    """What is counted of the table besides what is counted of every table."""


def run(
    form: Form,
    wanted: Wanted,
    buy: Callable[[list[Question]], Bought],
    how: Row,
    purse: Purse,
    out: Path,
) -> Counts:
    """Settle all items and write them, and `how` they were judged, to `out`.

    Counts: rows, judged, unjudged and unjudged_reasons, those of the form, prompt_tokens, tokens,
    models, fingerprints, cut, thoughts, asked, from_store, again (unjudged, and asked again by the
    next run), money (what its judgments cost, whoever paid). Raises UserError when the budget ends
    the run, or when not one of the judgments asked for came back.
    """
    asked = [item.question for item in wanted.items if item.question is not None]
    questions = list({question.id: question for question in asked}.values())
    bought = buy(questions)
    if purse.stopped:
        held = f"{bought.judgments.height} of {len(questions)} judgments are bought"
        raise UserError(
            f"the judge's budget of {purse.budget:g} ends here: {held} and kept, and "
            f"{purse.spent:.4g} is spent in all; raise `budget` and run again."
        )
    out.mkdir(parents=True, exist_ok=True)
    frame = table(form, wanted.items, bought)
    frame.write_parquet(out / f"{form.name}.parquet")
    write_atomic(out / form.how, json.dumps(how, indent=2))
    store = {
        "cut": wanted.cut,
        "thoughts": wanted.thoughts,
        "asked": bought.asked,
        "from_store": bought.known,
        "again": frame.filter(pl.col("judgment").is_in(list(bought.again))).height,
    }
    counted = counts(frame, form.counts(frame)) | store
    money = purse.cost(counted["prompt_tokens"], counted["tokens"])
    return counted | {"money": round(money, 6)}


def table(form: Form, items: Iterable[Item], bought: Bought) -> pl.DataFrame:
    """One row an item; what nobody could judge stays, with its reason."""
    cells = {cell["id"]: cell for cell in bought.judgments.iter_rows(named=True)}
    rows = []
    for item in items:
        row = {**item.row, "status": "unjudged", "reason": item.reason}
        if item.settled is not None:
            row |= {**item.settled, "status": OK}
        elif item.question is not None:
            name = item.question.id
            row |= {"judgment": name, "reason": bought.reasons.get(name, "not asked")}
            row |= _judged(form, item.row, cells[name]) if name in cells else {}
        rows.append(row)
    return pl.DataFrame(rows, schema=form.columns)


def _judged(form: Form, row: Row, cell: Row) -> Cell:
    known = {name: cell[name] for name in cell if name in form.columns and name != "status"}
    if cell["status"] != OK:
        return known
    return {**known, **form.value(row, cell), "status": OK}


def counts(frame: pl.DataFrame, more: Counts) -> Counts:
    """What is counted of every table of judgments, with `more` in the midst of it."""
    unjudged = frame.filter(pl.col("status") != OK)
    reasons = unjudged["reason"].value_counts().sort("reason")
    # What two items share was bought once.
    bought = frame.filter(pl.col("judgment").is_not_null()).unique("judgment")
    return {
        "rows": frame.height,
        "judged": frame.height - unjudged.height,
        "unjudged": unjudged.height,
        "unjudged_reasons": dict(reasons.iter_rows()),
        **more,
        **{name: total(bought, name) for name in ("prompt_tokens", "tokens")},
        **{
            f"{name}s": bought[name].drop_nulls().unique().sort().to_list()
            for name in ("model", "fingerprint")
        },
    }


def total(frame: pl.DataFrame, name: str) -> int:
    """The sum of a column; 0 where it has no values."""
    return int(frame[name].sum() or 0)


def identical(frame: pl.DataFrame) -> int:
    """How many items of a table were settled without a judge."""
    return frame.filter((pl.col("status") == OK) & pl.col("judgment").is_null()).height


def warn_of_change(counts: Counts, log: Log) -> None:
    """Say when `counts` has several models or fingerprints: the judge changed within one result."""
    for name in ("models", "fingerprints"):
        values = counts[name]
        if len(values) > 1:
            different = f"{len(values)} different {name} within one result"
            log.say(f"warning: the judge returned {different}: {', '.join(values)}")


def buy(
    protocol: Judged,
    questions: Sequence[Question],
    means: Means,
    fields: Fields = FIELDS,
    asking: type[Asker] = Asker,
) -> Bought:
    """The judgments of `questions` from the store's column of this judge and protocol; those that
    it lacks are asked for and kept there.

    `fields` are the column's value fields. Raises UserError when not one of the judgments asked for
    came back.
    """
    kind = "reward" if is_scored(protocol) else protocol.kind
    cell = determines(protocol.judge, protocol)
    column = Column.open(means.root, f"judgments-{kind}", cell, fields)
    names = [question.id for question in questions]
    attempts = Attempts(names, retry=means.servers.retry)
    asked = Asked({})
    with Journal(column) as journal:
        asker = asking(protocol, column, journal, means)
        stored, missing = attempts.read(column, questions)
        known = len(names) - len(missing)
        means.log.progress(known, len(names), asker.unit)
        if missing:
            means.log.say(asker.announcement(missing, known))
            asked = asker.ask(missing, known, len(names))
            stored, _ = attempts.read(column, questions)
        journal.keep = asker.turns and (bool(asked.reasons) or means.purse.stopped)
    if asked.reasons and stored.is_empty():
        raise UserError(asker.nothing(len(missing), next(iter(asked.reasons.values()))))
    reasons = {question_of(name): why for name, why in asked.reasons.items()}
    again = frozenset(map(question_of, asked.again))
    return Bought(stored, reasons, len(missing), known, again)


def determines(judge: JudgeConfig, protocol: Judged) -> Cell:
    """What a judgment depends on besides its texts: who judges, how it is asked, whose rules read
    it, the version of this code."""
    who = _identity(judge)
    limit = judge.max_answer_characters
    shared = {"version": VERSION, "judge": who, "max_answer_characters": limit}
    if is_scored(protocol):  # single answers: no prompt, no codes, no sampling
        return {**shared, "mode": "reward"}
    if judge.chat_template_kwargs:
        shared["chat_template_kwargs"] = judge.chat_template_kwargs
    own = protocol.model_dump(mode="json", exclude=NOT_ASKED)
    named = template_names(protocol).items()
    own["prompt"] = {category: digest(_text(protocol.kind, name)) for category, name in named}
    return {**shared, "api": judge.asks_by, **own}


ELSEWHERE = {
    "host",
    "port",
    "served_model_name",
    "data_parallel_size",
    "download_dir",
    "gpu_memory_utilization",
}
"""Engine arguments that say where and how wide a model is served, not how it computes."""


def _identity(judge: JudgeConfig) -> Cell:
    """Who judges: of our own servers the model, its revision and the engine arguments (fp8 is
    another judge than bfloat16); of a service its name for the model and the service's host, never
    a port or how many there are. A server of the user's own, on this machine or in its network, may
    move: what tells two of them apart is `revision`."""
    urls = judge.server.get("urls")
    if urls:
        who: Cell = {"model": judge.model, "revision": judge.revision}
        hosts = {urlsplit(url).hostname or "" for url in urls}
        public = sorted(host for host in hosts if not _is_own(host))
        return who | ({"host": public} if public else {})
    model = models.resolve(judge.model, judge.revision)
    who = {} if Path(model.path).is_dir() else {"model": model.name}
    args = judge.server.get("args", {})
    engine = {name: value for name, value in args.items() if name not in ELSEWHERE}
    return who | {"revision": model.revision} | ({"args": engine} if engine else {})


def _is_own(host: str) -> bool:
    """Whether a host is this machine or one of its network."""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localdomain"))


def _text(kind: str, name: str) -> str:
    """A template's text; a pairwise one is also checked for its slots, which are known here."""
    if kind in ("alpaca", "arena"):
        return templates.template(name).text
    return templates.read(name)[1]


def template_names(protocol: Judged) -> dict[str, str]:
    """The protocol's templates by category; under "" the one of all categories."""
    return {"": protocol.prompt} if isinstance(protocol.prompt, str) else protocol.prompt


def is_scored(protocol: Any) -> bool:
    """Whether a reward model scores each answer by itself."""
    return isinstance(protocol, AlpacaConfig) and protocol.mode == "reward"


INSTRUCTIONS = 400
"""About how many tokens the judge's own instructions are."""

SHOWN: Mapping[str, Callable[[Any], list[tuple[int, int]]]] = {
    "alpaca": lambda protocol: [(1 if protocol.order == "random" else 2, 2)],
    "arena": lambda protocol: [(2, 2)],
    "wildbench": lambda protocol: [(1, 1), (len(protocol.references), 2)],
    "mtbench": lambda protocol: [(1, 2)],
}
"""(calls a prompt, answers that each shows) by the protocol's `kind`; MT-Bench shows both turns,
and a reference's answer counts like the model's."""


def estimate(protocol: PairwiseProtocol | RatedProtocol, characters: Sequence[int]) -> Bill | None:
    """The most that a judge can be asked and paid for one checkpoint, before its answers are known;
    None while the prompts are unknown. `characters`: of the prompt in each call."""
    if not characters:
        return None
    own = range(len(characters))
    if protocol.share is not None:
        own = own[protocol.share[0] :: protocol.share[1]]
    characters = [characters[i] for i in own] * protocol.answers.answers_per_prompt
    answer = int(protocol.answers.sampling.get("max_tokens", 1024))
    prompts = sum(length // 4 for length in characters)  # four characters a token
    shown, fixed = SHOWN[protocol.kind](protocol), INSTRUCTIONS
    most = most_tokens(protocol.sampling)
    if is_scored(protocol):
        # A call for each answer, which shows that answer alone, and nothing is generated.
        shown, fixed, most = [(2, 1)], 0, 0
    items = len(characters)
    calls = items * sum(times for times, _ in shown)
    asked = sum(times * (prompts + items * (n * answer + fixed)) for times, n in shown)
    money = Purse(protocol.judge.prices, None).cost(asked, calls * most)
    return Bill(calls, asked, calls * most, money)


def compared(
    row: Row,
    mine: Answer,
    theirs: Answer,
    rival: str,
    tie: Row,
    ask: Callable[[str, str], Question],
) -> Item:
    """The model's answer and a rival's, shown in the order of `row`; `ask` has the question for the
    first and the second shown. Identical answers are a `tie` without a call."""
    if mine[0] is None:
        return Item(row, reason=f"the model has no answer: {mine[1]}")
    if theirs[0] is None:
        return Item(row, reason=f"{rival} has no answer: {theirs[1]}")
    if mine[0] == theirs[0]:
        return Item(row, settled={**tie, "verdict": "identical answers"})
    if row["order"] == "model":
        return Item(row, ask(mine[0], theirs[0]))
    return Item(row, ask(theirs[0], mine[0]))
