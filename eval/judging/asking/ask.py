"""Asking a judge: request bodies, what a reply means, and further turns.

A judgment is settled once a reply was read: with a verdict, or without one (failed, with the
reason). What never got a usable reply is not settled, and is asked again by the next run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import polars as pl

from core import models
from core.columns import Column
from core.errors import UserError
from core.pretrained import control_tokens
from core.sending.chat import most_tokens, usage
from core.sending.purse import Purse
from core.servers import Servers
from core.serving.weights import spec_at
from core.tracking import Log
from core.wire import Reply, Request, ServerSpec
from eval.judging import templates, verdicts
from eval.judging.asking.journal import Cell, Draft, Journal, Row
from eval.judging.templates import Message, Template
from eval.judging.verdicts import Judged
from eval.protocols import AlpacaConfig, JudgeConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Fields = Mapping[str, pl.DataType | type[pl.DataType]]

SPENT: Fields = {
    "prompt_tokens": pl.Int64,
    "tokens": pl.Int64,
    "model": pl.String,
    "fingerprint": pl.String,
}
FIELDS: Fields = {
    "first": pl.Float64,
    "label": pl.String,
    "verdict": pl.String,
    "mass": pl.Float64,
    "constrained": pl.Boolean,
    **SPENT,
}
"""Value fields of a judgment: `first` is P(the first shown answer is better); `verdict` the judge's
own text; `mass` the probability on the verdict codes; tokens of all its turns; model and
fingerprint as the endpoint returned them."""

PROBES = 3
"""Questions that a judge is asked one after the other until it gives a judgment, before it is asked
the rest: what no question will get is found out by as many."""
SILENT = 20
"""Questions in a row without a judgment after which a judge counts as gone."""
TRIES = 3
"""How often a question is asked whose replies are no verdict's form at all (wrong schema, no text);
the endpoint retries the rest."""
UNREADABLE = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""What reading a reply raises that has no verdict's form: it is a model's words, so anything."""


@dataclass(frozen=True)
class Question:
    """One judgment to ask for: `id` names its content, `values` fills the template's slots."""

    id: str
    shape: Template
    values: Mapping[str, str]


@dataclass(frozen=True)
class Means:
    """With what judgments are bought, and where they are kept for good: the root of the store."""

    root: Path
    purse: Purse
    servers: Servers
    log: Log


def purse_of(judge: JudgeConfig, servers: Servers) -> Purse:
    """The money for a judge: what this run's experiment spent on it before counts."""
    name = f"{short_name(judge.model)} (judge)"
    return Purse(judge.prices, judge.budget, ledger=servers.ledger, name=name)


@dataclass
class Asked:
    """What has come of the questions so far."""

    drafts: dict[str, Draft]
    reasons: dict[str, str] = field(default_factory=dict)
    """Why, by id, for the questions that are not settled."""
    again: set[str] = field(default_factory=set)
    """Those of them that are worth asking again: the server was at fault."""
    settled: bool = False
    """Whether the judge gave a judgment at all."""
    in_a_row: int = 0
    """Questions without a judgment since the last."""


@dataclass
class Asker:
    """Asks one judge under one protocol and settles what comes back into `column`."""

    protocol: Judged
    column: Column
    journal: Journal
    means: Means

    unit: ClassVar[str] = "judgments"
    turns: ClassVar[bool] = True
    """Whether a question may take several, of which the journal holds the first."""

    def __post_init__(self) -> None:
        self.judge = self.protocol.judge
        # The judge's, when it is asked by token ids; None for a chat endpoint.
        self.tokenizer: PreTrainedTokenizerBase | None = None
        # Recorded as the judge's name instead of what the server calls it: our own servers name a
        # model by its path on this machine.
        self.name: str | None = None
        self.code_of_token: dict[str, str] = {}
        # The verdict codes whose log-probabilities are read.
        self.codes: tuple[str, ...] = ()
        if isinstance(self.protocol, AlpacaConfig) and self.protocol.mode == "logprob":
            self.codes = self.protocol.codes

    def announcement(self, missing: Sequence[Question], known: int) -> str:
        """What is about to be asked, in words."""
        texts = [text for question in missing for text in question.values.values()]
        texts += [text for question in missing for _, text in question.shape.messages]
        size, most = sum(map(len, texts)) // 4, len(missing) * most_tokens(self.protocol.sampling)
        line = (
            f"judge {self.judge.model}: {len(missing)} to ask, {known} in the store; "
            f"about {size} prompt tokens, at most {most} generated"
        )
        if self.judge.prices is None:
            return line
        purse = self.means.purse
        return (
            f"{line}, so at most about {purse.cost(size, most):.4g}; "
            f"spent before: {purse.spent:.4g}"
        )

    def nothing(self, asked: int, why: str) -> str:
        """That not one of the questions asked was answered, in words."""
        return (
            f"the judge {self.judge.model} gave no judgment on any of {asked} questions; "
            f"the first reason: {why}"
        )

    def ask(self, questions: Iterable[Question], done: int, total: int) -> Asked:
        """Ask all questions, further turns included; returns what became of those that are not
        settled.

        The first ones alone, until one is settled. Raises UserError, with everything bought kept,
        when the judge refuses access, gives no log-probabilities though they are read, or settles
        nothing PROBES times at first or SILENT times in a row.
        """
        endpoint = self.means.servers.serve(self._spec())
        by_id = {question.id: question for question in questions}
        asking = Asked({name: self.journal.drafts.get(name, Draft()) for name in by_id})
        names = list(by_id)
        probes = list(dict.fromkeys(names[len(names) * at // PROBES] for at in range(PROBES)))
        with self.column.filling() as add:
            while names and not self.means.purse.stopped:
                alone = [name for name in probes if name in names and not asking.settled][:1]
                waiting = alone or names
                names = [name for name in names if alone and name not in alone]
                while waiting and not self.means.purse.stopped:
                    requests = self._requests([by_id[name] for name in waiting], asking.drafts)
                    waiting = []
                    for reply in endpoint.stream(requests, ahead=False):
                        outcome = self._read(reply, asking.drafts[reply.key])
                        if isinstance(outcome, Draft):
                            asking.drafts[reply.key] = outcome
                            waiting.append(reply.key)
                            continue
                        if isinstance(outcome, str):
                            self._failed(asking, reply, outcome)
                        else:
                            self.journal.write(outcome)
                            add(outcome)
                            asking.settled, asking.in_a_row = True, 0
                        done += 1
                        self.means.log.progress(done, total, self.unit)
        return asking

    def _failed(self, asking: Asked, reply: Reply, why: str) -> None:
        """Remember why a question is not settled. Raises UserError where the others would fare no
        better."""
        asking.reasons[reply.key] = why
        if reply.fault == "server":
            asking.again.add(reply.key)
        own = reply.fault == "request"
        missing = reply.body is not None and why == str(verdicts.NoLogprobs())
        if not asking.settled and (missing or (own and "logprob" in why.lower())):
            raise UserError(
                f"the judge {self.judge.model} gives no log-probabilities, by which its verdicts "
                f"are read ({why}); set `mode: text`, or take a judge that gives them."
            )
        asking.in_a_row += not own
        limit = SILENT if asking.settled else PROBES
        if reply.fault == "access" or asking.in_a_row >= limit:
            if not asking.settled:
                raise UserError(self.nothing(len(asking.drafts), why))
            raise UserError(
                f"the judge {self.judge.model} answers no more ({why}); everything bought is kept: "
                "mend that, and run again."
            )

    def _spec(self) -> ServerSpec:
        """The judge's server; also learns the judge's tokenizer, codes and name."""
        judge = self.judge
        hosted = bool(judge.server.get("urls"))
        if hosted and judge.asks_by == "chat":
            return ServerSpec(model=judge.model, **judge.server)
        model = models.resolve(judge.model, judge.revision)
        self.name = None if hosted else short_name(judge.model)
        if judge.asks_by == "completions":
            self.tokenizer = models.tokenizer(model.path, model.commit)
            self.code_of_token = self._code_tokens(self.tokenizer)
        return spec_at(model, judge.server)

    def _code_tokens(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """The protocol's codes by the names that a server gives their tokens."""
        names = {}
        for code in self.codes:
            ids = control_tokens.hostile_ids(tokenizer, code)
            if len(ids) != 1:
                raise UserError(
                    f"the verdict code '{code}' is {len(ids)} tokens for {self.judge.model}; "
                    "choose codes of one token each."
                )
            names[f"token_id:{ids[0]}"] = code
        return names

    def _requests(
        self, questions: Iterable[Question], drafts: Mapping[str, Draft]
    ) -> Iterator[Request]:
        for question in questions:
            request = self._request(question, drafts[question.id])
            body = request.body
            if "messages" in body:
                # A generous guess where no tokenizer is known.
                size = sum(len(message["content"]) for message in body["messages"]) // 2
            else:
                size = len(body.get("prompt") or body["input"])
            if not self.means.purse.reserve(question.id, size, most_tokens(body)):
                return
            yield request

    def _request(self, question: Question, draft: Draft) -> Request:
        """A question, or its next turn, as the judge's API takes it."""
        follow: list[Message] = []
        if draft.turn == "continue":
            text = (templates.FOLDER / "arena-continue.jinja").read_text().strip()
            follow = [
                {"role": "assistant", "content": draft.text},
                {"role": "user", "content": text},
            ]
        sampling = self.protocol.sampling
        if self.tokenizer is None:
            shown = templates.messages(question.shape, question.values, follow)
            body = {"messages": shown, **sampling}
            if self.judge.chat_template_kwargs:
                body["chat_template_kwargs"] = self.judge.chat_template_kwargs
            if self.codes:
                body |= {"logprobs": True, "top_logprobs": sampling.get("top_logprobs", 20)}
            return Request(question.id, body, "/v1/chat/completions")
        ids = templates.token_ids(
            self.tokenizer,
            question.shape,
            question.values,
            follow,
            template_kwargs=self.judge.chat_template_kwargs,
        )
        body = {"prompt": ids, **sampling}
        if draft.turn == "constrain":
            before = draft.text + verdicts.OPENING
            body["prompt"] = ids + control_tokens.hostile_ids(self.tokenizer, before)
            # The judge's free text is over: what is left is one of five short labels.
            choice = {"choice": list(verdicts.LABELS)}
            body |= {"max_tokens": 16, "temperature": 0, "structured_outputs": choice}
        if self.codes:
            body |= {"logprobs": sampling.get("logprobs", 20), "return_tokens_as_token_ids": True}
        return Request(question.id, body)

    def _read(self, reply: Reply, draft: Draft) -> Cell | Draft | str:
        """A settled judgment, a draft that needs another turn (or another try), or why there is
        none."""
        body = reply.body
        if body is None:
            self.means.purse.settle(reply.key, 0, 0)
            return reply.error or "no reply"
        prompt_tokens, tokens = usage(body)
        if not isinstance(body.get("usage"), dict):  # then it counts as the most it may have cost
            prompt_tokens, tokens = self.means.purse.held(reply.key)
        self.means.purse.settle(reply.key, prompt_tokens, tokens)
        cost: Cell = {
            "prompt_tokens": draft.prompt_tokens + prompt_tokens,
            "tokens": draft.tokens + tokens,
        }
        try:
            choice = body["choices"][0]
            written = verdicts.Written(choice, _text(choice), draft, self.code_of_token)
            outcome = verdicts.read(self.protocol, written)
        except verdicts.NoLogprobs as error:
            return str(error)
        except UNREADABLE as error:
            if draft.tries + 1 >= TRIES:
                return malformed(error)
            return replace(draft, tries=draft.tries + 1, **cost)
        if isinstance(outcome, Draft):
            outcome = replace(outcome, **cost)
            self.journal.write({"id": reply.key, "draft": vars(outcome)})
            return outcome
        said_by = {
            "model": self.name or body.get("model"),
            "fingerprint": body.get("system_fingerprint"),
        }
        return {"id": reply.key, **cost, **said_by, **outcome}


def short_name(model: str) -> str:
    """A judge's name where it is recorded: without the folders that a model lies in."""
    return Path(model).name if Path(model).is_dir() else model


def malformed(error: Exception) -> str:
    """Why a reply that is no verdict's form was not read."""
    return f"malformed reply: {type(error).__name__} {error}"


def _text(choice: Row) -> str:
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    if not isinstance(text, str):
        refused = (choice.get("message") or {}).get("refusal")
        raise TypeError("the reply holds no text" + (" (a refusal)" if refused else ""))
    return text
