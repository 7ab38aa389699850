"""Reward models as judges: a sequence-classification model behind a vLLM pooling server scores each
answer by itself.

The preference between two answers is sigmoid(reward of the first - reward of the second), the
Bradley-Terry probability that reward models are trained by (Ouyang et al. 2022, arXiv 2203.02155,
section 3.5). A reward is bought once for an answer, so a baseline's are shared by all arms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from core.columns import FAILED, OK, Column
from core.errors import UserError
from core.servers import Servers
from core.store import digest
from core.tracking import Log
from core.wire import Reply, Request, ServerSpec
from eval.judging import templates
from eval.judging.ask import FIELDS as JUDGMENT
from eval.judging.ask import FLUSH, Question
from eval.judging.journal import Journal, Purse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELDS: dict[str, pl.DataType | type[pl.DataType]] = {
    "reward": pl.Float64,
    "prompt_tokens": pl.Int64,
    "model": pl.String,
}
"""Value fields of a reward; `reward` is the model's own logit, not its sigmoid."""


def buy(
    questions: Sequence[Question],
    column: Column,
    purse: Purse,
    tokenizer: PreTrainedTokenizerBase,
    spec: ServerSpec,
    name: str,
    *,
    servers: Servers,
    log: Log,
) -> tuple[pl.DataFrame, dict[str, str], int, int]:
    """Settle all questions by rewards in `column` (with `FIELDS`), asking `spec` for those that it
    lacks; `name` is recorded as the judge's.

    Returns judgments with the fields of eval.asking.FIELDS (`verdict` has both raw rewards), why by
    id for those that are not settled, how many rewards were asked for, and how many the store had.
    Raises UserError for a model with several outputs, and when not one of the rewards asked for
    came back.
    """
    answers: dict[str, Mapping[str, str]] = {}
    sides: dict[str, list[str]] = {}
    for question in questions:
        for slot in ("output_1", "output_2"):
            shown = {"instruction": question.values["instruction"], "answer": question.values[slot]}
            answers[digest(shown)] = shown
            sides.setdefault(question.id, []).append(digest(shown))
    reasons: dict[str, str] = {}
    with Journal(column) as journal:
        stored = column.read(list(answers))
        purse.spent = purse.cost(int(stored["prompt_tokens"].sum() or 0), 0)
        held = set(stored["id"])
        missing = [answer for answer in answers if answer not in held]
        log.progress(len(held), len(answers), "rewards")
        if missing:
            log.say(
                f"reward model {name}: {len(missing)} answers to score, {len(held)} in the store"
            )
            settled: list[dict[str, Any]] = []
            try:
                replies = servers.serve(spec).stream(_requests(missing, answers, tokenizer, purse))
                for done, reply in enumerate(replies, len(held) + 1):
                    cell = _read(reply, name, purse)
                    if isinstance(cell, str):
                        reasons[reply.key] = cell
                    else:
                        journal.write(cell)
                        settled.append(cell)
                    if len(settled) >= FLUSH:
                        column.append(settled)
                        settled.clear()
                    log.progress(done, len(answers), "rewards")
            finally:
                column.append(settled)
            stored = column.read(list(answers))
    if reasons and len(reasons) == len(missing):
        raise UserError(
            f"the reward model {name} scored none of {len(missing)} answers; the first reason: {next(iter(reasons.values()))}"
        )
    cells = {row["id"]: row for row in stored.iter_rows(named=True)}
    rows, unsettled = [], {}
    for name_of, pair in sides.items():
        absent = next((side for side in pair if side not in cells), None)
        if absent is None:
            rows.append(_judgment(name_of, cells[pair[0]], cells[pair[1]]))
        else:
            unsettled[name_of] = reasons.get(absent, "not asked")
    schema = pl.Schema(
        {"id": pl.String(), **JUDGMENT, "status": pl.String(), "reason": pl.String()}
    )
    return pl.DataFrame(rows, schema=schema), unsettled, len(missing), len(held)


def preference(first: float, second: float) -> float:
    """sigmoid(first - second): the probability that the first of two answers with these rewards is
    the better one."""
    difference = first - second
    return (
        1 / (1 + math.exp(-difference))
        if difference >= 0
        else math.exp(difference) / (1 + math.exp(difference))
    )


def _requests(
    missing: Iterable[str],
    answers: Mapping[str, Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    purse: Purse,
) -> Iterator[Request]:
    for name in missing:
        ids = templates.token_ids(tokenizer, templates.CONVERSATION, answers[name], reply=False)
        if not purse.reserve(name, len(ids), 0):
            return
        yield Request(
            name, {"input": ids, "use_activation": False}, "/classify"
        )  # the logit: the server applies a sigmoid unless told not to


def _read(reply: Reply, name: str, purse: Purse) -> dict[str, Any] | str:
    """A settled reward, or why there is none."""
    if reply.body is None:
        purse.settle(reply.key, 0, 0)
        return reply.error or "no reply"
    spent = (reply.body.get("usage") or {}).get("prompt_tokens")
    tokens = spent if isinstance(spent, int) else 0
    purse.settle(reply.key, tokens, 0)
    try:
        scores = [float(score) for score in reply.body["data"][0]["probs"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return f"malformed reply: {type(error).__name__} {error}"
    if len(scores) != 1:
        raise UserError(
            f"the reward model {name} has {len(scores)} outputs; one that scores an answer has one."
        )
    finite = math.isfinite(scores[0])
    return {
        "id": reply.key,
        "reward": scores[0] if finite else None,
        "prompt_tokens": tokens,
        "model": name,
        "status": OK if finite else FAILED,
        "reason": None if finite else "the reward is not a finite number",
    }


def _judgment(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """One judgment from the cells of the first and the second shown answer."""
    reason = first["reason"] or second["reason"]
    judged = first["status"] == second["status"] == OK
    return {
        "id": name,
        "first": preference(first["reward"], second["reward"]) if judged else None,
        "verdict": json.dumps({"reward_1": first["reward"], "reward_2": second["reward"]}),
        "constrained": False,
        "prompt_tokens": first["prompt_tokens"] + second["prompt_tokens"],
        "tokens": 0,
        "model": first["model"],
        "status": OK if judged else FAILED,
        "reason": None if judged else reason,
    }
