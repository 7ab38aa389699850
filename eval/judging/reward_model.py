"""Reward models as judges: a sequence-classification model behind a vLLM pooling server scores each
answer by itself.

The preference between two answers is sigmoid(reward of the first - reward of the second), the
Bradley-Terry probability that reward models are trained by (Ouyang et al. 2022, arXiv 2203.02155,
section 3.5). A reward is bought once for an answer, so a baseline's are shared by all arms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import ClassVar

import polars as pl

from core import models
from core.columns import FAILED, OK
from core.errors import UserError
from core.sending.chat import usage
from core.serving.weights import spec_at
from core.store import digest
from core.wire import Reply, Request, ServerSpec, reward_request, rewards
from eval.judging import settle, templates
from eval.judging.asking.ask import FIELDS as JUDGMENT
from eval.judging.asking.ask import Asker, Fields, Means, Question, malformed, short_name
from eval.judging.asking.journal import Cell, Draft, Row
from eval.protocols import PairwiseProtocol

FIELDS: Fields = {
    "reward": pl.Float64,
    "prompt_tokens": pl.Int64,
    "model": pl.String,
}
"""Value fields of a reward; `reward` is the model's own logit, not its sigmoid."""


def buy(protocol: PairwiseProtocol, questions: Sequence[Question], means: Means) -> settle.Bought:
    """Settle all questions by the rewards of their two answers.

    The judgments have the fields of eval.judging.asking.ask.FIELDS (`verdict` has both raw
    rewards); `asked` and `known` count rewards. Raises UserError for a model with several outputs,
    and when not one of the rewards asked for came back.
    """
    answers = {question.id: _answers(question) for question in questions}
    single = {answer.id: answer for pair in answers.values() for answer in pair}
    bought = settle.buy(protocol, list(single.values()), means, FIELDS, Scorer)
    cells = {cell["id"]: cell for cell in bought.judgments.iter_rows(named=True)}
    rows, reasons = [], {}
    for name, pair in answers.items():
        absent = [answer.id for answer in pair if answer.id not in cells]
        if absent:
            reasons[name] = bought.reasons.get(absent[0], "not asked")
        else:
            rows.append(_judgment(name, *(cells[answer.id] for answer in pair)))
    schema = pl.Schema({"id": pl.String, **JUDGMENT, "status": pl.String, "reason": pl.String})
    judgments = pl.DataFrame(rows, schema=schema)
    again = set()
    for name, pair in answers.items():
        if name in reasons and not bought.again.isdisjoint(answer.id for answer in pair):
            again.add(name)
    return settle.Bought(judgments, reasons, bought.asked, bought.known, again)


class Scorer(Asker):
    """Asks a reward model for the score of single answers."""

    unit: ClassVar[str] = "rewards"
    turns: ClassVar[bool] = False

    def announcement(self, missing: Sequence[Question], known: int) -> str:
        """What is about to be asked, in words."""
        name = short_name(self.judge.model)
        return f"reward model {name}: {len(missing)} answers to score, {known} in the store"

    def nothing(self, asked: int, why: str) -> str:
        """That not one answer was scored, in words."""
        name = short_name(self.judge.model)
        return f"the reward model {name} scored none of {asked} answers; the first reason: {why}"

    def _spec(self) -> ServerSpec:
        judge = self.judge
        model = models.resolve(judge.model, judge.revision)
        self.name = short_name(judge.model)
        self.tokenizer = models.tokenizer(model.path, model.commit)
        args = {"runner": "pooling", **judge.server.get("args", {})}
        return spec_at(model, judge.server | {"args": args})

    def _request(self, question: Question, draft: Draft) -> Request:
        assert self.tokenizer is not None
        return reward_request(
            question.id,
            templates.token_ids(self.tokenizer, question.shape, question.values, reply=False),
        )

    def _read(self, reply: Reply, draft: Draft) -> Cell | str:
        """A settled reward, or why there is none."""
        tokens = usage(reply.body or {})[0]
        self.means.purse.settle(reply.key, tokens, 0)
        if reply.body is None:
            return reply.error or "no reply"
        try:
            scores = rewards(reply.body)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return malformed(error)
        if len(scores) != 1:
            raise UserError(
                f"the reward model {self.name} has {len(scores)} outputs; "
                "one that scores an answer has one."
            )
        cell = {"id": reply.key, "reward": scores[0], "prompt_tokens": tokens, "model": self.name}
        if math.isfinite(scores[0]):
            return cell | {"status": OK, "reason": None}
        reason = "the reward is not a finite number"
        return cell | {"reward": None, "status": FAILED, "reason": reason}


def preference(first: float, second: float) -> float:
    """sigmoid(first - second): the probability that the first of two answers with these rewards is
    the better one."""
    difference = first - second
    if difference >= 0:
        return 1 / (1 + math.exp(-difference))
    return math.exp(difference) / (1 + math.exp(difference))


def _answers(question: Question) -> list[Question]:
    """The first and the second shown answer, each to the instruction, as questions of their own."""
    shown = [
        {"instruction": question.values["instruction"], "answer": question.values[slot]}
        for slot in ("output_1", "output_2")
    ]
    return [Question(digest(values), templates.CONVERSATION, values) for values in shown]


def _judgment(name: str, first: Row, second: Row) -> Cell:
    """One judgment from the cells of the first and the second shown answer."""
    judgment = {
        "id": name,
        "verdict": json.dumps({"reward_1": first["reward"], "reward_2": second["reward"]}),
        "constrained": False,
        "prompt_tokens": first["prompt_tokens"] + second["prompt_tokens"],
        "tokens": 0,
        "model": first["model"],
        "status": OK,
    }
    if first["status"] == second["status"] == OK:
        return judgment | {"first": preference(first["reward"], second["reward"])}
    return judgment | {"status": FAILED, "reason": first["reason"] or second["reason"]}
