"""Pairwise judging of a checkpoint's answers against a baseline's: AlpacaEval-style and
Arena-Hard-style.

An item is a game: one showing of two answers (eval/judging/settle.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from core.columns import OK
from core.errors import UserError
from core.servers import Servers
from core.store import Counts, digest
from core.tracking import Log
from eval.comparing import sequential
from eval.judging import reward_model, settle, templates
from eval.judging.asking import texts
from eval.judging.asking.ask import SPENT, Means, Question, purse_of
from eval.judging.asking.journal import Cell, Row
from eval.prompt_sets import samples
from eval.prompt_sets.prompts import Prompt, prompts
from eval.protocols import PairwiseProtocol

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
    **SPENT,
    "model_characters": pl.Int64,
    "baseline_characters": pl.Int64,
    **settle.STATUS,
}
"""Columns of judgments.parquet. `game` 1 or 2; `order` says whose answer was shown first
("baseline" or "model"); `preference` is P(the model's answer is better), null when unjudged;
`label` is the judge's own word (A and B, or the codes: first and second shown); `judgment` is its
id in the store (null when nobody was asked)."""


def run(
    protocol: PairwiseProtocol,
    inputs: Mapping[str, Path],
    root: Path,
    out: Path,
    *,
    servers: Servers,
    log: Log,
) -> Counts:
    """Judge `inputs["answers"]` against `inputs["baseline"]` (answers folders) on
    `inputs["prompts"]`; write `out`/judgments.parquet, and `out`/protocol.json (`determines`).

    `root` is the store's root, where judgments are kept for good. AlpacaEval-style: one game an
    item in an order fixed by the instruction, or both; in mode `reward` a reward model scores each
    answer by itself (eval/judging/reward_model.py). Arena-style: game 1 shows the baseline first,
    game 2 the model. Several answers a prompt are an item each (eval/prompt_sets/samples.py),
    against the baseline's of the same number or its only one. Identical answers count as a tie
    without a call. An item that nobody could judge stays, with its reason.

    Counts: rows (games), judged, unjudged and unjudged_reasons, identical, cut (answers shortened),
    thoughts (the model's answers that hold some, which nobody is judged by), asked, from_store,
    constrained, mass (mean probability on the verdict codes), first_preferred (mean: 0.5 is no
    position bias), position_consistency and position_pairs, tokens, money, models, fingerprints.
    Raises UserError when the budget ends the run, or when not one of the judgments asked for came
    back.
    """
    judge = protocol.judge
    means = Means(root, purse_of(judge, servers), servers, log)
    buy = reward_model.buy if settle.is_scored(protocol) else settle.buy
    games = _games(protocol, inputs)
    how = settle.determines(judge, protocol)
    counts = settle.run(FORM, games, partial(buy, protocol, means=means), how, means.purse, out)
    settle.warn_of_change(counts, log)
    return counts


def judging(frame: pl.DataFrame) -> Cell:
    """What to know about a judge beside its score, from judgments.parquet (several judges: each by
    itself): constrained (verdicts), mass (mean probability on the codes), first_preferred (mean
    preference for what was shown first: 0.5 is no bias), position_consistency (share of items
    judged in both orders that have the same winner, or a tie, in both) and position_pairs (how many
    those are)."""
    asked = frame.filter((pl.col("status") == OK) & pl.col("judgment").is_not_null())
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


def _games(protocol: PairwiseProtocol, inputs: Mapping[str, Path]) -> settle.Wanted:
    """Every prompt's answers side by side, in one order or both."""
    answers, baseline = (texts.read_answers(inputs[name]) for name in ("answers", "baseline"))
    codes = protocol.codes if protocol.kind == "alpaca" else ("A", "B")
    named = settle.template_names(protocol)
    shapes = {category: templates.template(name, codes) for category, name in named.items()}
    games, shown = [], []
    for prompt in _shared(protocol, prompts(str(inputs["prompts"]))):
        mine = answers.get(prompt.id, texts.NO_ANSWER)
        once = baseline.get(samples.prompt_of(prompt.id), texts.NO_ANSWER)
        theirs = baseline.get(prompt.id, once)
        shown += [mine, theirs]
        category = "" if isinstance(protocol.prompt, str) else prompt.category
        if category not in shapes:
            raise UserError(
                f"`prompt` of the arena names no template for category '{category}'; "
                f"it has {', '.join(sorted(shapes))}."
            )
        ask = partial(_question, protocol, shapes[category], prompt.prompt)
        tie = {"preference": 0.5, "label": "A=B" if protocol.kind == "arena" else None}
        for number, model_first in enumerate(_orders(protocol, prompt), 1):
            row = {
                "item": prompt.id,
                "category": prompt.category,
                "game": number,
                "order": "model" if model_first else "baseline",
                "model_characters": texts.length(mine),
                "baseline_characters": texts.length(theirs),
            }
            games.append(settle.compared(row, mine, theirs, "the baseline", tie, ask))
    cut, thoughts = texts.shortened(shown, protocol.judge), texts.thinking(inputs["answers"])
    return settle.Wanted(games, cut, thoughts)


def _shared(protocol: PairwiseProtocol, wanted: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, once for each answer, that this judge judges."""
    each = protocol.answers.answers_per_prompt
    own, judges = protocol.share or (0, 1)
    return [
        one
        for place, prompt in _first(protocol.first, wanted)
        for one in samples.each([prompt], each)
        if (place + samples.number(one.id)) % judges == own
    ]


def _first(number: int | None, wanted: Sequence[Prompt]) -> list[tuple[int, Prompt]]:
    """The prompts that are judged so far, each with its place among all of them."""
    known = set(sequential.order(prompt.id for prompt in wanted)[:number])
    return [(place, prompt) for place, prompt in enumerate(wanted) if prompt.id in known]


def _orders(protocol: PairwiseProtocol, prompt: Prompt) -> list[bool]:
    """Whether the model's answer is shown first, game by game; a prompt's further answers take
    turns."""
    if protocol.kind == "alpaca" and protocol.order == "random":
        turned = samples.number(prompt.id) % 2 == 1
        return [texts.model_shown_first(prompt.prompt, protocol.order_seed) != turned]
    return [False, True]


def _question(
    protocol: PairwiseProtocol, shape: templates.Template, prompt: str, first: str, second: str
) -> Question:
    values = {
        "instruction": prompt,
        "output_1": texts.shorten(first, protocol.judge),
        "output_2": texts.shorten(second, protocol.judge),
    }
    return Question(digest([shape.text, prompt, first, second]), shape, values)


def _preference(game: Row, judgment: Row) -> dict[str, float]:
    first = judgment["first"]
    return {"preference": first if game["order"] == "model" else 1 - first}


def _more(games: pl.DataFrame) -> Counts:
    return {"identical": settle.identical(games), **judging(games)}


FORM = settle.Form("judgments", "protocol.json", JUDGMENTS, _preference, _more)
