"""Multi-turn conversations: after the first answer the model writes the user's next message itself,
then answers it, and so on.

The next message is drawn like the first one: the conversation so far is rendered up to the place of
the user's message (`templates.follow_up`, so there is no empty assistant header and no second BOS)
and sampled with `synth.instruction`; the answer is sampled with `synth.response`. A row's turns are
a chain of requests with no barrier between rows. Every finished half-turn is a cell of its own, so
a killed run continues at the half-turn, and a later recipe with more turns continues the same
conversations. What the original did otherwise (gen_mt.py): a second BOS, a stop at the first
newline, cut-off turns kept unmarked, templates for Llama-3 alone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import FAILED, MESSAGES, OK, Column, merging_read
from core.errors import UserError
from core.store import digest
from core.wire import Reply, Request
from synth.chat import templates
from synth.chat.thinking import Thinking, thinking_of
from synth.config import SynthConfig
from synth.context import Context, Served
from synth.generate import ask, single_turn
from synth.generate.ask import Row, batched, failed
from synth.generate.first_token import Chain, FirstToken, first_token
from synth.generate.single_turn import generated

VERSION = 1
"""Part of every key of a turn; raised when the same settings would give other text."""

PROMPT = Path(__file__).with_name("prompts") / "multi_turn.jinja"
FIELDS: dict[str, Any] = {
    "messages": MESSAGES,
    "turns": pl.Int64,
    "tokens": pl.Int64,
    "prompt_tokens": pl.Int64,
}
"""messages: the whole conversation; turns: the user's messages in it; tokens: generated after the
first answer."""
_HALF: dict[str, Any] = {
    "row": pl.String,
    "text": pl.String,
    "tokens": pl.Int64,
    "prompt_tokens": pl.Int64,
}


def system_prompt(config: SynthConfig) -> str | None:
    """The system prompt under which further user messages are drawn (never answers, as in
    gen_mt.py); None: the chat template's own."""
    given = config.turns_system_prompt
    return PROMPT.read_text().strip() if given == "paper" else given


def cell(config: SynthConfig, context: Context) -> dict[str, Any] | None:
    """What determines a finished conversation; None for a recipe of single turns."""
    return (
        {**_half_cell(config, context), "turns": config.turns, "end_with": config.end_with}
        if config.turns > 1
        else None
    )


def _half_cell(config: SynthConfig, context: Context) -> dict[str, Any]:
    return {
        "teacher": context.revision(config.teacher),
        "responder": context.revision(config.responder or config.teacher),
        "instruction": config.instruction,
        "response": config.response,
        "system_prompt": system_prompt(config),
        "seed": config.seed,
        **(
            {"first_token": config.first_token.model_dump(exclude_defaults=True)}
            if config.first_token
            else {}
        ),
        "VERSION": [VERSION, single_turn.VERSION, templates.VERSION],
    }


@dataclass
class Talk:
    """One conversation as far as it has come. `problem`: why it cannot go on."""

    id: str
    messages: list[dict[str, str]]
    tokens: int = 0
    prompt_tokens: int = 0
    problem: str | None = None

    @property
    def role(self) -> str:
        """Whose turn it is."""
        return "user" if self.messages[-1]["role"] == "assistant" else "assistant"

    @property
    def key(self) -> str:
        """Id of the next half-turn: it depends on every word said before."""
        return f"{self.id}:{len(self.messages)}:{digest(self.messages)[:16]}"

    @property
    def place(self) -> str:
        """The next half-turn in words."""
        return f"turn {len(self.messages) // 2 + 1}, {self.role}"


@dataclass(frozen=True)
class Side:
    """One side of the conversation: its model, how it thinks, whether its prompt opens a think
    block, the request for its next message, and the rule for its first token."""

    served: Served
    thinking: Thinking | None
    opened: bool | None
    body: Callable[[Talk], dict[str, Any]]
    chain: Chain | None = None


def user_side(
    served: Served, sampling: Mapping[str, Any], system: str | None, first: FirstToken | None = None
) -> Side:
    """Writes the user's next message, with a seed of the row's and turn's own.

    Raises UserError where the chat template refuses or ignores the system prompt.
    """
    words = served.tokenizer
    stop = sorted(
        {
            *templates.pre_query(words, system or templates.DEFAULT).stop_token_ids,
            *sampling.get("stop_token_ids", ()),
        }
    )
    before = [{"role": "system", "content": system}] if system else []

    def body(talk: Talk) -> dict[str, Any]:
        seed = int(digest([talk.id, len(talk.messages), sampling.get("seed")])[:8], 16) % 2**31
        return {
            **sampling,
            "prompt": templates.follow_up(words, [*before, *talk.messages]),
            "stop_token_ids": stop,
            "seed": seed,
        }

    # A user's message is never opened by a generation prompt, so only a think block of the model's
    # own is one.
    return Side(served, thinking_of(words), False, body, Chain(first) if first else None)


def assistant_side(served: Served, sampling: Mapping[str, Any]) -> Side:
    """Answers the user's last message."""
    words = served.tokenizer
    thinking = thinking_of(words)

    def body(talk: Talk) -> dict[str, Any]:
        prompt = templates.encode_conversation(words, talk.messages, add_generation_prompt=True)
        return {**(thinking.sampling if thinking else {}), **sampling, "prompt": prompt}

    return Side(served, thinking, None, body)


def compute(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    """Continue the conversations of rows [id, instruction, response] to `synth.turns` turns; frames
    [id, *FIELDS, status, reason] as they finish.

    An empty or cut-off message, a thought that never ended, a prompt that leaves no room in
    max_model_len, and a failed request fail the row, with turn and side in the reason.
    """
    teacher, rule = context.serve(config.teacher), config.first_token
    first = first_token(teacher.tokenizer, rule.suppress, rule.temperature) if rule else None
    user = user_side(teacher, config.instruction, system_prompt(config), first)
    assistant = assistant_side(context.serve(config.responder or config.teacher), config.response)
    journal = Column.open(context.root, "half_turns", _half_cell(config, context), _HALF)
    length = 2 * config.turns - (config.end_with == "user")
    talks = [
        Talk(i, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
        for i, question, answer in rows.select("id", "instruction", "response").iter_rows()
    ]
    return batched(
        _continued(talks, length, user, assistant, journal),
        {"id": pl.String, **FIELDS, "status": pl.String, "reason": pl.String},
    )


def _continued(
    talks: list[Talk], length: int, user: Side, assistant: Side, journal: Column
) -> Iterator[Row]:
    known = _finished_halves(journal, talks)
    for talk in talks:
        while len(talk.messages) < length and (held := known.get(talk.key)):
            _said(talk, held)
    del known
    sides: dict[str, Side] = {"user": user, "assistant": assistant}
    together = (
        user.served.spec == assistant.served.spec
    )  # one server: chains; two: each side speaks in its turn
    journaled = _Journal(journal)
    try:
        waiting = talks
        while waiting:
            groups: dict[str, list[Talk]] = defaultdict(list)
            for talk in waiting:
                if len(talk.messages) >= length:
                    yield _row(talk)
                else:
                    groups["all" if together else talk.role].append(talk)
            if not groups:
                return
            group = next(iter(groups.values()))
            for talk in _stream(group, length, sides, together, journaled):
                if talk.problem or len(talk.messages) >= length:
                    yield _row(talk)
                else:
                    groups["later"].append(talk)
            waiting = [t for g in groups.values() if g is not group for t in g]
    finally:
        journaled.flush()
        with (
            suppress(UserError),
            journal.alone(),
        ):  # tasks of a cluster write side by side; one of them merges
            journal.compact()


def _stream(
    group: list[Talk], length: int, sides: dict[str, Side], together: bool, journal: _Journal
) -> Iterator[Talk]:
    """Let the talks go on as far as one server can take them; each comes back once, finished,
    failed, or waiting for the other side."""
    by_id = {talk.id: talk for talk in group}
    refused: list[Talk] = []
    first = sides[group[0].role]

    def request(talk: Talk) -> Request | None:
        side = sides[talk.role]
        body = side.body(talk)
        limit = side.served.spec.args.get("max_model_len")
        if limit is not None:
            left = int(limit) - len(body["prompt"])
            if left < 1:
                talk.problem = f"{talk.place}: a prompt of {len(body['prompt'])} tokens leaves no room in max_model_len {limit}"
                return None
            body["max_tokens"] = min(int(body.get("max_tokens") or left), left)
        made = Request(talk.id, body)
        return side.chain.begin(made) if side.chain else made

    def requests() -> Iterator[Request]:
        for talk in group:
            made = request(talk)
            if made is None:
                refused.append(talk)
            else:
                yield made

    def then(reply: Reply) -> Request | None:
        talk = by_id[reply.key]
        side = sides[talk.role]
        if side.chain:
            if (rest := side.chain.then(reply)) is not None:
                return rest
            reply = side.chain.join(reply)
        row = generated(reply, "text", side.thinking, side.opened)
        problem = row.get("reason") or (
            "cut off before its end" if row.get("finish_reason") == "length" else None
        )
        if problem:
            talk.problem = f"{talk.place}: {problem}"
            talk.tokens += row.get("tokens") or 0
            return None
        half = {
            "id": talk.key,
            "row": talk.id,
            **{n: row.get(n) for n in ("text", "tokens", "prompt_tokens")},
        }
        journal.add(half)
        _said(talk, half)
        return request(talk) if together and len(talk.messages) < length else None

    for reply in first.served.endpoint.answers(requests(), then):
        yield by_id[reply.key]
        while refused:
            yield refused.pop()
    yield from refused


def _said(talk: Talk, half: Row) -> None:
    """Add a finished half-turn to a conversation."""
    talk.messages.append({"role": talk.role, "content": half["text"]})
    talk.tokens += half["tokens"] or 0
    talk.prompt_tokens += half["prompt_tokens"] or 0


def _row(talk: Talk) -> Row:
    spent = {"tokens": talk.tokens, "prompt_tokens": talk.prompt_tokens}
    if talk.problem:
        return failed(talk.id, talk.problem, **spent)
    count = sum(m["role"] == "user" for m in talk.messages)
    return {"id": talk.id, "messages": talk.messages, "turns": count, **spent, "status": OK}


def _finished_halves(journal: Column, talks: list[Talk]) -> dict[str, Row]:
    """What was said in these conversations before, by key."""
    rows = pl.DataFrame({"row": [t.id for t in talks]}, schema={"row": pl.String})

    def read() -> list[pl.DataFrame]:
        return [journal.part(path).join(rows, on="row", how="semi") for path in journal.parts()]

    return {
        row["id"]: row
        for part in merging_read(read)
        for row in part.filter(pl.col("status") != FAILED).iter_rows(named=True)
    }


class _Journal:
    """Finished half-turns on their way to disk, as often as rows are."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self._held: list[Row] = []
        self._since = time.monotonic()

    def add(self, half: Row) -> None:
        """Remember one half-turn."""
        self._held.append(half)
        if len(self._held) >= ask.BATCH_ROWS or time.monotonic() - self._since >= ask.BATCH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._held:
            self._column.append(
                pl.DataFrame(self._held, schema={"id": pl.String, **_HALF}, strict=False)
            )
        self._held, self._since = [], time.monotonic()
