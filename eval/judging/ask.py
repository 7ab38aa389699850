"""Asking a judge: request bodies, what a reply means, and further turns.

A judgment is settled once a reply was read: with a verdict, or without one (failed, with the
reason). What never got a usable reply is not settled, and is asked again by the next run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from core import control_tokens
from core.columns import FAILED, OK, Column
from core.errors import UserError
from core.servers import Endpoint
from core.tracking import Log
from core.wire import Reply, Request
from eval.config import (
    AlpacaConfig,
    ArenaConfig,
    JudgeConfig,
    MTBenchConfig,
    RewardProtocol,
    WildBenchConfig,
)
from eval.judging import templates, verdicts
from eval.judging.journal import Draft, Journal, Purse
from eval.judging.templates import Message, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELDS: dict[str, pl.DataType | type[pl.DataType]] = {
    "first": pl.Float64,
    "label": pl.String,
    "verdict": pl.String,
    "mass": pl.Float64,
    "constrained": pl.Boolean,
    "prompt_tokens": pl.Int64,
    "tokens": pl.Int64,
    "model": pl.String,
    "fingerprint": pl.String,
}
"""Value fields of a judgment: `first` is P(the first shown answer is better); `verdict` the judge's
own text; `mass` the probability on the verdict codes; tokens of all its turns; model and
fingerprint as the endpoint returned them."""

TRIES = 3
"""How often a question is asked whose replies are no verdict's form at all (wrong schema, no text);
the endpoint retries the rest."""
FLUSH = 256
"""Judgments between two parts of the column; the journal holds what is in between."""
_OPENING = "\n\nMy verdict: [["


@dataclass(frozen=True)
class Question:
    """One judgment to ask for: `id` names its content, `values` fills the template's slots."""

    id: str
    shape: Template
    values: Mapping[str, str]


@dataclass
class Asker:
    """Asks one judge under one protocol and settles what comes back into `column`."""

    judge: JudgeConfig
    protocol: AlpacaConfig | ArenaConfig | WildBenchConfig | MTBenchConfig | RewardProtocol
    tokenizer: PreTrainedTokenizerBase | None
    """The judge's, when it is asked by token ids; None for a chat endpoint."""
    column: Column
    journal: Journal
    purse: Purse
    log: Log
    name: str | None = None
    """Recorded as the judge's name instead of what the server calls it (our own servers name a
    model by its path on this machine)."""

    def __post_init__(self) -> None:
        self._codes: dict[str, str] = {}
        if (
            self.tokenizer is not None
            and isinstance(self.protocol, AlpacaConfig)
            and self.protocol.mode == "logprob"
        ):
            for code in self.protocol.codes:
                ids = control_tokens.hostile_ids(self.tokenizer, code)
                if len(ids) != 1:
                    raise UserError(
                        f"the verdict code '{code}' is {len(ids)} tokens for {self.judge.model}; choose codes of one token each."
                    )
                self._codes[f"token_id:{ids[0]}"] = code

    def ask(
        self, endpoint: Endpoint, questions: Iterable[Question], done: int, total: int
    ) -> dict[str, str]:
        """Ask all questions, further turns included; returns why, by id, for those that are not
        settled."""
        by_id = {question.id: question for question in questions}
        drafts = {name: self.journal.drafts.get(name, Draft()) for name in by_id}
        settled: list[dict[str, Any]] = []
        reasons: dict[str, str] = {}
        waiting = list(by_id)
        try:
            while waiting and not self.purse.stopped:
                again: list[str] = []
                for reply in endpoint.stream(self._requests(waiting, by_id, drafts)):
                    outcome = self._read(reply, drafts[reply.key])
                    if isinstance(outcome, Draft):
                        drafts[reply.key] = outcome
                        again.append(reply.key)
                        continue
                    if isinstance(outcome, str):
                        reasons[reply.key] = outcome
                    else:
                        settled.append(outcome)
                        if len(settled) >= FLUSH:
                            self.column.append(settled)
                            settled.clear()
                    done += 1
                    self.log.progress(done, total, "judgments")
                waiting = again
        finally:
            self.column.append(settled)
        return reasons

    def _requests(
        self, waiting: Iterable[str], questions: Mapping[str, Question], drafts: Mapping[str, Draft]
    ) -> Iterator[Request]:
        for name in waiting:
            request = self._request(questions[name], drafts[name])
            prompt = request.body.get("prompt") or [m["content"] for m in request.body["messages"]]
            size = (
                len(prompt) if self.tokenizer is not None else len("".join(prompt)) // 2
            )  # a generous guess where no tokenizer is known
            if not self.purse.reserve(name, size, most_tokens(request.body)):
                return
            yield request

    def _request(self, question: Question, draft: Draft) -> Request:
        sampling = dict(self.protocol.sampling)
        follow: list[Message] = []
        if draft.turn == "continue":
            text = (templates.FOLDER / "arena-continue.jinja").read_text().strip()
            follow = [
                {"role": "assistant", "content": draft.text},
                {"role": "user", "content": text},
            ]
        logprob = isinstance(self.protocol, AlpacaConfig) and self.protocol.mode == "logprob"
        if self.tokenizer is None:
            body = {
                "messages": templates.messages(question.shape, question.values, follow),
                **sampling,
            }
            if logprob:
                body |= {"logprobs": True, "top_logprobs": sampling.get("top_logprobs", 20)}
            return Request(question.id, body, "/v1/chat/completions")
        ids = templates.token_ids(self.tokenizer, question.shape, question.values, follow)
        if draft.turn == "constrain":
            ids = ids + control_tokens.hostile_ids(self.tokenizer, draft.text + _OPENING)
            # The judge's free text is over: what is left is one of five short labels.
            sampling |= {
                "max_tokens": 16,
                "temperature": 0,
                "structured_outputs": {"choice": list(verdicts.LABELS)},
            }
        body = {"prompt": ids, **sampling}
        if logprob:
            body |= {"logprobs": sampling.get("logprobs", 20), "return_tokens_as_token_ids": True}
        return Request(question.id, body)

    def _read(self, reply: Reply, draft: Draft) -> dict[str, Any] | Draft | str:
        """A settled judgment, a draft that needs another turn (or another try), or why there is
        none."""
        body = reply.body
        if body is None:
            self.purse.settle(reply.key, 0, 0)
            return reply.error or "no reply"
        spent = _usage(body)
        self.purse.settle(reply.key, *spent)
        total = draft.prompt_tokens + spent[0], draft.tokens + spent[1]
        try:
            choice = body["choices"][0]
            text = choice["text"] if "text" in choice else choice["message"]["content"]
            if not isinstance(text, str):
                raise TypeError(
                    "the reply holds no text"
                    + (" (a refusal)" if (choice.get("message") or {}).get("refusal") else "")
                )
            outcome = self._verdict(choice, text, draft)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            reason = f"malformed reply: {type(error).__name__} {error}"
            return (
                reason
                if draft.tries + 1 >= TRIES
                else Draft(draft.turn, draft.text, *total, tries=draft.tries + 1)
            )
        if isinstance(outcome, Draft):
            outcome.prompt_tokens, outcome.tokens = total
            self.journal.write({"id": reply.key, "draft": vars(outcome)})
            return outcome
        cell = {
            "id": reply.key,
            "prompt_tokens": total[0],
            "tokens": total[1],
            "model": self.name or body.get("model"),
            "fingerprint": body.get("system_fingerprint"),
            **outcome,
        }
        self.journal.write(cell)
        return cell

    def _verdict(
        self, choice: Mapping[str, Any], text: str, draft: Draft
    ) -> dict[str, Any] | Draft:
        if isinstance(self.protocol, ArenaConfig):
            return self._label(text, draft)
        if isinstance(self.protocol, RewardProtocol):
            return self._choice(choice, text)
        if not isinstance(self.protocol, AlpacaConfig):
            return self._rating(choice, text)
        codes = self.protocol.codes
        mass: float | None = None
        if self.protocol.mode == "logprob":
            top = {
                self._codes.get(token, token): value
                for token, value in verdicts.top_tokens(choice).items()
            }
            first, mass = verdicts.verdict_mass(top, codes)
            reason = f"neither {codes[0]} nor {codes[1]} is among the judge's first {len(top)} candidates"
        else:
            first = verdicts.parse_code(verdicts.own_words(text), codes)
            reason = f"the judge wrote neither {codes[0]} nor {codes[1]}"
        label = None if first is None or first == 0.5 else codes[0] if first > 0.5 else codes[1]
        return _cell(first, label, text, None if first is not None else reason) | {"mass": mass}

    def _rating(self, choice: Mapping[str, Any], text: str) -> dict[str, Any]:
        read = (
            verdicts.closing_score
            if isinstance(self.protocol, WildBenchConfig)
            else verdicts.closing_rating
        )
        cut = (
            choice.get("finish_reason") == "length"
        )  # what a cut text ends with may be a quotation
        rating = None if cut else read(verdicts.own_words(text))
        reason = (
            "the judge's text was cut off before its rating"
            if cut
            else "the judge's text does not end with a rating from 1 to 10"
        )
        return {
            "rating": rating,
            "verdict": text,
            "status": FAILED if rating is None else OK,
            "reason": reason if rating is None else None,
        }

    def _choice(self, choice: Mapping[str, Any], text: str) -> dict[str, Any]:
        cut = choice.get("finish_reason") == "length"
        label = None if cut else verdicts.closing_choice(verdicts.own_words(text))
        if label is None:
            return _cell(
                None,
                None,
                text,
                "the judge's text was cut off before its choice"
                if cut
                else "the judge's text does not end with a choice",
            )
        return _cell(0.5 if label == "A=B" else float(label[0] == "A"), label, text, None)

    def _label(self, text: str, draft: Draft) -> dict[str, Any] | Draft:
        assert isinstance(self.protocol, ArenaConfig)
        said = f"{_OPENING}{text}]]" if draft.turn == "constrain" else f"\n{text}"
        whole = f"{draft.text}{said}".lstrip("\n")
        own = verdicts.own_words(draft.text) + verdicts.own_words(said)
        label = verdicts.PARSE[self.protocol.version](own)
        if label is not None:
            return _cell(verdicts.first_preferred(label), label, whole, None) | {
                "constrained": draft.turn == "constrain"
            }
        several = sorted(verdicts.labels_v01(own))
        if draft.turn == "first" and not (several and self.protocol.version == "v0.1"):
            if self.protocol.constrain:
                return Draft("constrain", whole)
            if (
                self.protocol.version == "v0.1"
            ):  # the official code asks once more when, and only when, there is no label at all
                return Draft("continue", whole)
        return _cell(
            None,
            None,
            whole,
            f"no single verdict: {', '.join(several)}"
            if several
            else "no verdict in the judge's text",
        )


def _cell(
    first: float | None, label: str | None, verdict: str, reason: str | None
) -> dict[str, Any]:
    status = OK if reason is None else FAILED
    return {
        "first": first,
        "label": label,
        "verdict": verdict,
        "mass": None,
        "constrained": False,
        "status": status,
        "reason": reason,
    }


def _usage(body: Mapping[str, Any]) -> tuple[int, int]:
    """(prompt tokens, generated tokens) that a reply says it cost; 0 where it says nothing."""
    usage = body.get("usage")
    counts = [
        usage.get(name) if isinstance(usage, dict) else None
        for name in ("prompt_tokens", "completion_tokens")
    ]
    return (counts[0] if isinstance(counts[0], int) else 0), (
        counts[1] if isinstance(counts[1], int) else 0
    )


def most_tokens(sampling: Mapping[str, Any]) -> int:
    """The most tokens a request may generate (max_tokens, or OpenAI's newer max_completion_tokens);
    0 when it sets no limit."""
    return int(sampling.get("max_tokens") or sampling.get("max_completion_tokens") or 0)
