"""Fit of an answer to the model that is fine-tuned (after GRAPE, arXiv 2502.04194):

    fit = mean log-probability (nats, at most 0) of the supervised tokens under the base model

of the conversation as the recipe's training renders it, each token given all before it. GRAPE
draws several answers an instruction from several models and keeps the one that fits best; ranking
the one answer that each row has, by its top, middle or low part, is a variant of it.
"""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from core.columns import OK
from core.errors import UserError
from core.servers import Endpoint
from core.wire import Reply, Request, prompt_losses, scoring_request
from synth.chat.encoding import pair
from synth.config.models import ModelConfig
from synth.config.synthesis import SynthConfig
from synth.context import Context, Serving, Student
from synth.generate.ask import (
    TOKENS,
    Frames,
    Row,
    Rows,
    Unreadable,
    asked,
    context_length,
    failed,
    first_choice,
    fitting,
    only,
    spent,
)

VERSION = 1
"""Part of every key of a fit; raised when the same model would give other values."""


def fit(rows: Rows, student: Student, endpoint: Endpoint) -> Frames:
    """Fit of responses by prompt log-probabilities: a request of one token a row.

    `rows`: id, instruction, response. Yields [id, fit, tokens, prompt_tokens, status, reason]; a
    conversation longer than the server's `max_model_len` (where the recipe gives it), and one
    without supervised tokens, are failed cells.
    """
    limit = context_length(endpoint)
    waiting: dict[str, tuple[list[int], list[int]]] = {}

    def ask(row: Row) -> Request | Row:
        conversation = pair(row["instruction"], row["response"])
        ids, mask = student.encode([conversation])[0]
        # nothing precedes the first token
        places = [at for at, supervised in enumerate(mask) if supervised and at]
        if not places:
            return failed(row["id"], "the training template supervises none of its tokens")
        request = fitting(scoring_request(row["id"], ids), limit)
        if isinstance(request, Request):
            waiting[row["id"]] = ids, places
        return request

    def read(reply: Reply) -> Row:
        ids, places = waiting.pop(reply.key)
        try:
            loss = _mean_loss(reply, ids, places)
        except Unreadable as error:
            return failed(reply.key, str(error), **spent(reply))
        if not math.isfinite(loss):
            return failed(reply.key, "the fit is not finite", **spent(reply))
        return {"id": reply.key, "fit": -loss, **spent(reply), "status": OK}

    return asked(rows, ask, read, endpoint, {"fit": pl.Float64, **TOKENS})


def _mean_loss(reply: Reply, ids: list[int], places: list[int]) -> float:
    choice = first_choice(reply)
    try:
        losses = prompt_losses(choice, ids, 1, len(ids))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__} {error}"
        raise Unreadable(f"no log-probabilities of the prompt in the reply: {problem}") from error
    return math.fsum(losses[at - 1] for at in places) / len(places)


def cell(config: SynthConfig, context: Context) -> dict[str, Any] | None:
    """What determines a fit: the base model and how its training renders a row; None where nothing
    is trained."""
    student = context.student
    if student is None:
        return None
    base = context.revision(_served(student, config))
    return {"base": base, "rendered": student.determines, "VERSION": VERSION}


def compute(rows: Rows, config: SynthConfig, context: Serving) -> Frames:
    """The measure `fit` of rows [id, instruction, response]."""
    student = context.student
    if student is None:
        raise UserError("`fit` is the fit to the model that is trained: add `train` to the recipe.")
    endpoint = context.serve(_served(student, config)).endpoint
    return fit(only(rows, ("id", "instruction", "response")), student, endpoint)


def _served(student: Student, config: SynthConfig) -> ModelConfig:
    """The base model behind a server of `synth.tags.fit`."""
    server = config.tags.fit.server
    return ModelConfig(model=student.base, revision=student.revision, server=server)
