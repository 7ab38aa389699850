"""Pairwise judging of a checkpoint's answers against a baseline's: AlpacaEval-style and Arena-Hard-style.

A judgment is named by what it is about (judge prompt, prompt, first answer, second answer) and lives in a column of the store keyed by who
judged and how, so that it is never bought twice, whichever recipe, arm or seed asks.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core import models
from core.columns import Column
from core.endpoint import Servers, ServerSpec
from core.errors import UserError
from core.store import Counts, digest, write_atomic
from core.tracking import Log
from eval import judge_prompts, rewards
from eval.asking import FIELDS, Asker, Question, most_tokens
from eval.benchmarks import prompts
from eval.config import AlpacaConfig, ArenaConfig, JudgeConfig, MTBenchConfig, RewardConfig, WildBenchConfig
from eval.purchases import Journal, Purse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1

JUDGMENTS = {
    "item": pl.String, "category": pl.String, "game": pl.Int64, "order": pl.String, "preference": pl.Float64, "label": pl.String,
    "verdict": pl.String, "mass": pl.Float64, "constrained": pl.Boolean, "prompt_tokens": pl.Int64, "tokens": pl.Int64, "model": pl.String,
    "fingerprint": pl.String, "model_characters": pl.Int64, "baseline_characters": pl.Int64, "judgment": pl.String, "status": pl.String,
    "reason": pl.String,
}  # fmt: skip
"""Columns of judgments.parquet. `game` 1 or 2; `order` says whose answer was shown first ("baseline" or "model"); `preference` is P(the
model's answer is better), null when unjudged; `label` is the judge's own word (A and B, or the codes: first and second shown); `judgment` is
its id in the store (null when nobody was asked)."""


@dataclass(frozen=True)
class Game:
    """One showing of two answers: to be judged (`question`), settled without a judge (`identical`), or impossible (`reason`)."""

    item: str
    category: str
    number: int
    model_first: bool
    lengths: tuple[int | None, int | None]
    question: Question | None = None
    identical: bool = False
    reason: str | None = None


def run(protocol: AlpacaConfig | ArenaConfig, inputs: Mapping[str, Path], root: Path, out: Path, *, servers: Servers, log: Log) -> Counts:
    """Judge `inputs["answers"]` against `inputs["baseline"]` (answers folders) on `inputs["prompts"]`; write `out`/judgments.parquet,
    and `out`/protocol.json (`determines`).

    `protocol` is `EvalConfig.protocol(benchmark)`, whose judge is set. `root` is the store's root, where judgments are kept for good.
    AlpacaEval-style: one game an item in an order fixed by the instruction, or both; in mode `reward` a reward model scores each answer by
    itself (eval/rewards.py). Arena-style: game 1 shows the baseline first, game 2 the model. Identical answers count as a tie without a call.
    An item that nobody could judge stays, with its reason.

    Counts: rows (games), judged, unjudged and unjudged_reasons, identical, cut (answers shortened), asked, from_store, constrained, mass (mean
    probability on the verdict codes), first_preferred (mean: 0.5 is no position bias), position_consistency and position_pairs, tokens,
    money, models, fingerprints. Raises UserError when the budget ends the run, or when not one of the judgments asked for came back.
    """
    judge = protocol.judge
    assert judge is not None, "EvalConfig.protocol fills the judge in"
    games, cut = _games(protocol, judge, inputs)
    questions = {game.question.id: game.question for game in games if game.question is not None}
    purse = Purse(judge.prices, judge.budget)
    reward = isinstance(protocol, AlpacaConfig) and protocol.mode == "reward"
    stored, reasons, asked, known = (_rewarded if reward else buy)(protocol, judge, list(questions.values()), root, purse, servers, log)
    within_budget(judge, purse, stored.height, len(questions))
    out.mkdir(parents=True, exist_ok=True)
    frame = _table(games, stored, reasons, isinstance(protocol, ArenaConfig))
    frame.write_parquet(out / "judgments.parquet")
    write_atomic(out / "protocol.json", json.dumps(determines(judge, protocol), indent=2))
    counts = _counts(frame) | {"cut": cut, "asked": asked, "from_store": known, "money": round(purse.spent, 6)}
    warn_of_change(counts, log)
    return counts


def warn_of_change(counts: Counts, log: Log) -> None:
    """Say when `counts` has several models or fingerprints: the judge changed within one result."""
    for name in ("models", "fingerprints"):
        if len(counts[name]) > 1:
            log.say(f"warning: the judge returned {len(counts[name])} different {name} within one result: {', '.join(counts[name])}")


def within_budget(judge: JudgeConfig, purse: Purse, bought: int, wanted: int) -> None:
    """Raise UserError when the budget stopped the asking."""
    if purse.stopped:
        raise UserError(
            f"the judge's budget of {judge.budget:g} ends here: {bought} of {wanted} judgments are bought, for "
            f"{purse.spent:.4g}, and kept; raise `budget` and run again."
        )


Judged = AlpacaConfig | ArenaConfig | WildBenchConfig | MTBenchConfig | RewardConfig
Fields = Mapping[str, pl.DataType | type[pl.DataType]]
Bought = tuple[pl.DataFrame, dict[str, str], int, int]
"""Judgments (with the value fields of their column), why by id for those that are not settled, how many were asked for, how many the store had."""


def buy(
    protocol: Judged, judge: JudgeConfig, questions: Sequence[Question], root: Path, purse: Purse, servers: Servers, log: Log, fields: Fields = FIELDS
) -> Bought:
    """The judgments of `questions` from the store's column of this judge and protocol, those that it lacks asked for and kept there.

    `fields` are the column's value fields. What `purse` has spent before counts too. Raises UserError when not one of the judgments asked for
    came back.
    """
    column = Column.open(root, f"judgments-{protocol.kind}", determines(judge, protocol), fields)
    names = [question.id for question in questions]
    reasons: dict[str, str] = {}
    with Journal(column) as journal:
        stored = column.read(names)
        purse.spent += purse.cost(int(stored["prompt_tokens"].sum() or 0), int(stored["tokens"].sum() or 0))
        known = set(stored["id"])
        missing = [question for question in questions if question.id not in known]
        log.progress(len(known), len(questions), "judgments")
        if missing:
            log.say(_announcement(judge, protocol, missing, len(known), purse))
            tokenizer, path, name = _identity(judge)
            asker = Asker(judge, protocol, tokenizer, column, journal, purse, log, name)
            reasons = asker.ask(servers.serve(ServerSpec(model=path, **judge.server)), missing, len(known), len(questions))
            stored = column.read(names)
        journal.keep = bool(reasons) or purse.stopped  # first turns that were paid for, of judgments that are not settled
    if reasons and len(reasons) == len(missing) and not purse.stopped:
        why = next(iter(reasons.values()))
        raise UserError(f"the judge {judge.model} gave no judgment on any of {len(missing)} questions; the first reason: {why}")
    return stored, reasons, len(missing), len(known)


def _rewarded(
    protocol: AlpacaConfig | ArenaConfig, judge: JudgeConfig, questions: Sequence[Question], root: Path, purse: Purse, servers: Servers, log: Log
) -> Bought:
    column = Column.open(root, "judgments-reward", determines(judge, protocol), rewards.FIELDS)
    path = models.resolve(judge.model, judge.revision).path
    spec = ServerSpec(model=path, **judge.server | {"args": {"runner": "pooling", **judge.server.get("args", {})}})
    name = Path(judge.model).name if Path(judge.model).is_dir() else judge.model
    return rewards.buy(questions, column, purse, models.tokenizer(path), spec, name, servers=servers, log=log)


def _identity(judge: JudgeConfig) -> tuple[PreTrainedTokenizerBase | None, str, str | None]:
    """The judge's tokenizer (when it is asked by token ids), its name in requests, and the name to record (None: what the server says)."""
    hosted = bool(judge.server.get("urls"))
    if hosted and judge.asks_by == "chat":
        return None, judge.model, None
    path = models.resolve(judge.model, judge.revision).path
    name = None if hosted else Path(judge.model).name if Path(judge.model).is_dir() else judge.model
    return models.tokenizer(path) if judge.asks_by == "completions" else None, path, name


def determines(judge: JudgeConfig, protocol: Judged) -> dict[str, Any]:
    """What a judgment depends on besides its texts: who judges, how it is asked, whose rules read it, the version of this code."""
    who: dict[str, Any] = {"model": judge.model, "revision": judge.revision}
    if not judge.server.get("urls"):
        found = models.resolve(judge.model, judge.revision)
        who = {"revision": found.revision} if Path(found.path).is_dir() else {"model": found.name, "revision": found.revision}
    said = {"version": VERSION, "judge": who, "max_answer_characters": judge.max_answer_characters}
    if isinstance(protocol, AlpacaConfig) and protocol.mode == "reward":  # scores of single answers: no prompt, no codes, no sampling
        return {**said, "mode": "reward"}
    elsewhere = {"references", "reward_prompt", "margin"}  # WB-Reward's, which asks by a protocol of its own
    shared = {"prompts", "answers", "baseline", "judge", "judges", "prompt", "order", "order_seed", "limit"}
    own = protocol.model_dump(mode="json", exclude=shared | elsewhere)
    named = {"": protocol.prompt} if isinstance(protocol.prompt, str) else protocol.prompt
    pairwise = isinstance(protocol, (AlpacaConfig, ArenaConfig))  # whose slots are known here; eval.ratings knows the others'
    text = {name: judge_prompts.template(name).text if pairwise else judge_prompts.read(name)[1] for name in named.values()}
    own["prompt"] = {category: digest(text[name]) for category, name in named.items()}
    return {**said, "api": judge.asks_by, **own}


def model_shown_first(instruction: str, seed: str = "0") -> bool:
    """AlpacaEval's order: drawn once an instruction, so that every model sees the same. True shows the model's answer before the baseline's.

    The seed text is that of alpaca_eval's PairwiseAnnotator ("is_switched_outputs" + instruction + seed); with seed 0 it gives the order of
    all published annotations.
    """
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]


def _games(protocol: AlpacaConfig | ArenaConfig, judge: JudgeConfig, inputs: Mapping[str, Path]) -> tuple[list[Game], int]:
    answers, baseline = read_answers(inputs["answers"]), read_answers(inputs["baseline"])
    shapes: dict[str, judge_prompts.Template] = {}
    games: list[Game] = []
    cut = 0
    for prompt in prompts(str(inputs["prompts"])):
        mine, theirs = answers.get(prompt.id, (None, "no answer")), baseline.get(prompt.id, (None, "no answer"))
        cut += sum(text is not None and len(text) > judge.max_answer_characters for text in (mine[0], theirs[0]))
        name = _template_name(protocol, prompt.category)
        if name not in shapes:
            codes = protocol.codes if isinstance(protocol, AlpacaConfig) else ("A", "B")
            shapes[name] = judge_prompts.template(name, codes)
        if isinstance(protocol, AlpacaConfig) and protocol.order == "random":
            orders = [model_shown_first(prompt.prompt, protocol.order_seed)]
        else:
            orders = [False, True]
        for number, model_first in enumerate(orders, 1):
            lengths = tuple(None if text is None else len(text) for text in (mine[0], theirs[0]))
            game = Game(prompt.id, prompt.category, number, model_first, (lengths[0], lengths[1]))
            if mine[0] is None or theirs[0] is None:
                whose, reason = ("the model", mine[1]) if mine[0] is None else ("the baseline", theirs[1])
                games.append(replace(game, reason=f"{whose} has no answer: {reason}"))
            elif mine[0] == theirs[0]:
                games.append(replace(game, identical=True))
            else:
                first, second = (mine[0], theirs[0]) if model_first else (theirs[0], mine[0])
                values = {"instruction": prompt.prompt, "output_1": shorten(first, judge), "output_2": shorten(second, judge)}
                name_of = digest([shapes[name].text, prompt.prompt, first, second])
                games.append(replace(game, question=Question(name_of, shapes[name], values)))
    return games, cut


def _template_name(protocol: AlpacaConfig | ArenaConfig, category: str) -> str:
    if isinstance(protocol.prompt, str):
        return protocol.prompt
    if category not in protocol.prompt:
        raise UserError(f"`prompt` of the arena names no template for category '{category}'; it has {', '.join(sorted(protocol.prompt))}.")
    return protocol.prompt[category]


def shorten(text: str, judge: JudgeConfig) -> str:
    """An answer as the judge sees it: cut, with a note, where it is longer than `max_answer_characters`."""
    limit = judge.max_answer_characters
    return text if len(text) <= limit else f"{text[:limit]}\n[cut here: the first {limit} of {len(text)} characters are shown]"


def read_answers(folder: Path) -> dict[str, tuple[str | None, str]]:
    """(answer or None, why none) by prompt id, from answers.parquet of a folder."""
    path = folder / "answers.parquet"
    try:
        frame = pl.read_parquet(path, columns=["id", "answer", "status", "reason"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read as answers ({error}); make them first.") from error
    return {i: (a if s == "ok" else None, r or "") for i, a, s, r in frame.iter_rows()}


def _announcement(judge: JudgeConfig, protocol: Judged, missing: list[Question], known: int, purse: Purse) -> str:
    size = sum(len(text) for q in missing for text in q.values.values()) + sum(len(c) for q in missing for _, c in q.shape.messages)
    calls, most = len(missing), len(missing) * most_tokens(protocol.sampling)
    line = f"judge {judge.model}: {calls} to ask, {known} in the store; about {size // 4} prompt tokens, at most {most} generated"
    return line + (f", so at most about {purse.cost(size // 4, most):.4g}; spent before: {purse.spent:.4g}" if judge.prices else "")


def _table(games: list[Game], stored: pl.DataFrame, reasons: Mapping[str, str], arena: bool) -> pl.DataFrame:
    cells = {row["id"]: row for row in stored.iter_rows(named=True)}
    rows = []
    for game in games:
        row: dict[str, Any] = {
            "item": game.item, "category": game.category, "game": game.number, "order": "model" if game.model_first else "baseline",
            "model_characters": game.lengths[0], "baseline_characters": game.lengths[1], "status": "unjudged", "reason": game.reason,
        }  # fmt: skip
        if game.identical:
            row |= {"preference": 0.5, "label": "A=B" if arena else None, "verdict": "identical answers", "status": "ok"}
        elif game.question is not None:
            row["judgment"] = game.question.id
            cell = cells.get(game.question.id)
            if cell is None:
                row["reason"] = reasons.get(game.question.id, "not asked")
            else:
                row |= {k: cell[k] for k in ("label", "verdict", "mass", "constrained", "prompt_tokens", "tokens", "model", "fingerprint", "reason")}
                if cell["status"] == "ok":
                    row |= {"preference": cell["first"] if game.model_first else 1 - cell["first"], "status": "ok"}
        rows.append(row)
    return pl.DataFrame(rows, schema=JUDGMENTS)


def judging(frame: pl.DataFrame) -> dict[str, Any]:
    """What to know about a judge beside its score, from judgments.parquet (several judges: each by itself): constrained (verdicts), mass (mean
    probability on the codes), first_preferred (mean preference for what was shown first: 0.5 is no bias), position_consistency (share of
    items judged in both orders that have the same winner, or a tie, in both) and position_pairs (how many those are)."""
    asked = frame.filter((pl.col("status") == "ok") & pl.col("judgment").is_not_null())
    shown_first = pl.when(pl.col("order") == "model").then(pl.col("preference")).otherwise(1 - pl.col("preference"))
    keys = [name for name in ("item", "judge") if name in frame.columns]
    sides = asked.group_by(keys).agg(pl.len(), (pl.col("preference") - 0.5).sign().n_unique().alias("sides")).filter(pl.col("len") == 2)
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
    bought = frame.filter(pl.col("judgment").is_not_null()).unique("judgment")  # what two items share was bought once
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
