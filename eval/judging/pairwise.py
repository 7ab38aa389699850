"""Pairwise judging of a checkpoint's answers against a baseline's: AlpacaEval-style and
Arena-Hard-style.

A judgment is named by what it is about (judge prompt, prompt, first answer, second answer) and
lives in a column of the store keyed by who judged and how, so that it is never bought twice,
whichever recipe, arm or seed asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core import models
from core.columns import Column
from core.errors import UserError
from core.files import write_atomic
from core.servers import Servers
from core.store import Counts, digest
from core.tracking import Log
from core.wire import ServerSpec
from eval.config import AlpacaConfig, ArenaConfig, JudgeConfig
from eval.judging import reward_model, templates
from eval.judging.ask import Question
from eval.judging.journal import Purse
from eval.judging.settle import (
    Bought,
    buy,
    determines,
    model_shown_first,
    read_answers,
    shorten,
    warn_of_change,
    within_budget,
)
from eval.prompt_sets.prompts import prompts

if TYPE_CHECKING:
    pass

JUDGMENTS = {
    "item": pl.String,
    "category": pl.String,
    "game": pl.Int64,
    "order": pl.String,
    "preference": pl.Float64,
    "label": pl.String,
    "verdict": pl.String,
    "mass": pl.Float64,
    "constrained": pl.Boolean,
    "prompt_tokens": pl.Int64,
    "tokens": pl.Int64,
    "model": pl.String,
    "fingerprint": pl.String,
    "model_characters": pl.Int64,
    "baseline_characters": pl.Int64,
    "judgment": pl.String,
    "status": pl.String,
    "reason": pl.String,
}
"""Columns of judgments.parquet. `game` 1 or 2; `order` says whose answer was shown first
("baseline" or "model"); `preference` is P(the model's answer is better), null when unjudged;
`label` is the judge's own word (A and B, or the codes: first and second shown); `judgment` is its
id in the store (null when nobody was asked)."""


@dataclass(frozen=True)
class Game:
    """One showing of two answers: to be judged (`question`), settled without a judge (`identical`),
    or impossible (`reason`)."""

    item: str
    category: str
    number: int
    model_first: bool
    lengths: tuple[int | None, int | None]
    question: Question | None = None
    identical: bool = False
    reason: str | None = None


def run(
    protocol: AlpacaConfig | ArenaConfig,
    inputs: Mapping[str, Path],
    root: Path,
    out: Path,
    *,
    servers: Servers,
    log: Log,
) -> Counts:
    """Judge `inputs["answers"]` against `inputs["baseline"]` (answers folders) on
    `inputs["prompts"]`; write `out`/judgments.parquet, and `out`/protocol.json (`determines`).

    `protocol` is `EvalConfig.protocol(benchmark)`, whose judge is set. `root` is the store's root,
    where judgments are kept for good. AlpacaEval-style: one game an item in an order fixed by the
    instruction, or both; in mode `reward` a reward model scores each answer by itself
    (eval/judging/reward_model.py). Arena-style: game 1 shows the baseline first, game 2 the model.
    Identical answers count as a tie without a call. An item that nobody could judge stays, with its
    reason.

    Counts: rows (games), judged, unjudged and unjudged_reasons, identical, cut (answers shortened),
    asked, from_store, constrained, mass (mean probability on the verdict codes), first_preferred
    (mean: 0.5 is no position bias), position_consistency and position_pairs, tokens, money, models,
    fingerprints. Raises UserError when the budget ends the run, or when not one of the judgments
    asked for came back.
    """
    judge = protocol.judge
    assert judge is not None, "EvalConfig.protocol fills the judge in"
    games, cut = _games(protocol, judge, inputs)
    questions = {game.question.id: game.question for game in games if game.question is not None}
    purse = Purse(judge.prices, judge.budget)
    reward = isinstance(protocol, AlpacaConfig) and protocol.mode == "reward"
    stored, reasons, asked, known = (_rewarded if reward else buy)(
        protocol, judge, list(questions.values()), root, purse, servers, log
    )
    within_budget(judge, purse, stored.height, len(questions))
    out.mkdir(parents=True, exist_ok=True)
    frame = _table(games, stored, reasons, isinstance(protocol, ArenaConfig))
    frame.write_parquet(out / "judgments.parquet")
    write_atomic(out / "protocol.json", json.dumps(determines(judge, protocol), indent=2))
    counts = _counts(frame) | {
        "cut": cut,
        "asked": asked,
        "from_store": known,
        "money": round(purse.spent, 6),
    }
    warn_of_change(counts, log)
    return counts


def _rewarded(
    protocol: AlpacaConfig | ArenaConfig,
    judge: JudgeConfig,
    questions: Sequence[Question],
    root: Path,
    purse: Purse,
    servers: Servers,
    log: Log,
) -> Bought:
    column = Column.open(root, "judgments-reward", determines(judge, protocol), reward_model.FIELDS)
    path = models.resolve(judge.model, judge.revision).path
    spec = ServerSpec(
        model=path, **judge.server | {"args": {"runner": "pooling", **judge.server.get("args", {})}}
    )
    name = Path(judge.model).name if Path(judge.model).is_dir() else judge.model
    return reward_model.buy(
        questions, column, purse, models.tokenizer(path), spec, name, servers=servers, log=log
    )


def _games(
    protocol: AlpacaConfig | ArenaConfig, judge: JudgeConfig, inputs: Mapping[str, Path]
) -> tuple[list[Game], int]:
    answers, baseline = read_answers(inputs["answers"]), read_answers(inputs["baseline"])
    shapes: dict[str, templates.Template] = {}
    games: list[Game] = []
    cut = 0
    for prompt in prompts(str(inputs["prompts"])):
        mine, theirs = (
            answers.get(prompt.id, (None, "no answer")),
            baseline.get(prompt.id, (None, "no answer")),
        )
        cut += sum(
            text is not None and len(text) > judge.max_answer_characters
            for text in (mine[0], theirs[0])
        )
        name = _template_name(protocol, prompt.category)
        if name not in shapes:
            codes = protocol.codes if isinstance(protocol, AlpacaConfig) else ("A", "B")
            shapes[name] = templates.template(name, codes)
        if isinstance(protocol, AlpacaConfig) and protocol.order == "random":
            orders = [model_shown_first(prompt.prompt, protocol.order_seed)]
        else:
            orders = [False, True]
        for number, model_first in enumerate(orders, 1):
            lengths = tuple(None if text is None else len(text) for text in (mine[0], theirs[0]))
            game = Game(prompt.id, prompt.category, number, model_first, (lengths[0], lengths[1]))
            if mine[0] is None or theirs[0] is None:
                whose, reason = (
                    ("the model", mine[1]) if mine[0] is None else ("the baseline", theirs[1])
                )
                games.append(replace(game, reason=f"{whose} has no answer: {reason}"))
            elif mine[0] == theirs[0]:
                games.append(replace(game, identical=True))
            else:
                first, second = (mine[0], theirs[0]) if model_first else (theirs[0], mine[0])
                values = {
                    "instruction": prompt.prompt,
                    "output_1": shorten(first, judge),
                    "output_2": shorten(second, judge),
                }
                name_of = digest([shapes[name].text, prompt.prompt, first, second])
                games.append(replace(game, question=Question(name_of, shapes[name], values)))
    return games, cut


def _template_name(protocol: AlpacaConfig | ArenaConfig, category: str) -> str:
    if isinstance(protocol.prompt, str):
        return protocol.prompt
    if category not in protocol.prompt:
        raise UserError(
            f"`prompt` of the arena names no template for category '{category}'; it has {', '.join(sorted(protocol.prompt))}."
        )
    return protocol.prompt[category]


def _table(
    games: list[Game], stored: pl.DataFrame, reasons: Mapping[str, str], arena: bool
) -> pl.DataFrame:
    cells = {row["id"]: row for row in stored.iter_rows(named=True)}
    rows = []
    for game in games:
        row: dict[str, Any] = {
            "item": game.item,
            "category": game.category,
            "game": game.number,
            "order": "model" if game.model_first else "baseline",
            "model_characters": game.lengths[0],
            "baseline_characters": game.lengths[1],
            "status": "unjudged",
            "reason": game.reason,
        }
        if game.identical:
            row |= {
                "preference": 0.5,
                "label": "A=B" if arena else None,
                "verdict": "identical answers",
                "status": "ok",
            }
        elif game.question is not None:
            row["judgment"] = game.question.id
            cell = cells.get(game.question.id)
            if cell is None:
                row["reason"] = reasons.get(game.question.id, "not asked")
            else:
                row |= {
                    k: cell[k]
                    for k in (
                        "label",
                        "verdict",
                        "mass",
                        "constrained",
                        "prompt_tokens",
                        "tokens",
                        "model",
                        "fingerprint",
                        "reason",
                    )
                }
                if cell["status"] == "ok":
                    row |= {
                        "preference": cell["first"] if game.model_first else 1 - cell["first"],
                        "status": "ok",
                    }
        rows.append(row)
    return pl.DataFrame(rows, schema=JUDGMENTS)


def judging(frame: pl.DataFrame) -> dict[str, Any]:
    """What to know about a judge beside its score, from judgments.parquet (several judges: each by
    itself): constrained (verdicts), mass (mean probability on the codes), first_preferred (mean
    preference for what was shown first: 0.5 is no bias), position_consistency (share of items
    judged in both orders that have the same winner, or a tie, in both) and position_pairs (how many
    those are)."""
    asked = frame.filter((pl.col("status") == "ok") & pl.col("judgment").is_not_null())
    shown_first = (
        pl.when(pl.col("order") == "model")
        .then(pl.col("preference"))
        .otherwise(1 - pl.col("preference"))
    )
    keys = [name for name in ("item", "judge") if name in frame.columns]
    sides = (
        asked.group_by(keys)
        .agg(pl.len(), (pl.col("preference") - 0.5).sign().n_unique().alias("sides"))
        .filter(pl.col("len") == 2)
    )
    return {
        "constrained": int(asked["constrained"].sum() or 0),
        "mass": frame["mass"].mean(),
        "first_preferred": asked.select(shown_first.mean()).item(),
        "position_consistency": (sides["sides"] == 1).mean(),
        "position_pairs": sides.height,
    }


def _counts(frame: pl.DataFrame) -> Counts:
    unjudged = frame.filter(pl.col("status") != "ok")
    why = unjudged["reason"].value_counts().sort("reason")
    # what two items share was bought once
    bought = frame.filter(pl.col("judgment").is_not_null()).unique("judgment")
    return {
        "rows": frame.height,
        "judged": frame.height - unjudged.height,
        "unjudged": unjudged.height,
        "unjudged_reasons": dict(zip(why["reason"], why["count"], strict=True)),
        "identical": frame.filter((pl.col("status") == "ok") & pl.col("judgment").is_null()).height,
        **judging(frame),
        "prompt_tokens": int(bought["prompt_tokens"].sum() or 0),
        "tokens": int(bought["tokens"].sum() or 0),
        "models": bought["model"].drop_nulls().unique().sort().to_list(),
        "fingerprints": bought["fingerprint"].drop_nulls().unique().sort().to_list(),
    }
