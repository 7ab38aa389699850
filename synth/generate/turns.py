"""Multi-turn conversations: after the first answer the model writes the user's next message itself,
then answers it, and so on.

The next message is drawn like the first one: the conversation so far is rendered up to the place of
the user's message (`pre_query.follow_up`, so there is no empty assistant header and no second BOS)
and sampled with `synth.instruction`; the answer is sampled with `synth.response`. A row's turns are
a chain of requests with no barrier between rows. Every finished half-turn is a cell of its own, so
a killed run continues at the half-turn, and a later recipe with more turns continues the same
conversations. What the original did otherwise (gen_mt.py): a second BOS, a stop at the first
newline, cut-off turns kept unmarked, templates for Llama-3 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from core.columns import FAILED, MESSAGES, OK, Column
from core.store import digest
from core.wire import Reply, Request
from synth.chat import templates
from synth.chat.encoding import encode_conversation, pair
from synth.chat.families import has_plain_headers
from synth.chat.pre_query import DEFAULT, STOP_STRINGS, ending, follow_up, pre_query
from synth.chat.thinking import Thinking, thinking_of
from synth.config.synthesis import SynthConfig
from synth.context import Context, Served, Serving
from synth.generate import single_turn
from synth.generate.ask import (
    TOKENS,
    Fields,
    Frames,
    Row,
    Sampling,
    batched,
    context_length,
    exchanged,
    failed,
    fit,
)
from synth.generate.engine_seeds import seeded
from synth.generate.first_token import Chain, FirstToken, first_token
from synth.generate.single_turn import generated

VERSION = 1
"""Part of every key of a turn; raised when the same settings would give other text."""

PROMPT = Path(__file__).with_name("prompts") / "multi_turn.jinja"
FIELDS: Fields = {
    "messages": MESSAGES,
    "turns": pl.Int64,
    **TOKENS,
}
"""messages: the whole conversation; turns: the user's messages in it; tokens: generated after the
first answer."""
_HALF: Fields = {"row": pl.String, "text": pl.String, **TOKENS}


def system_prompt(config: SynthConfig) -> str | None:
    """The system prompt under which further user messages are drawn (never answers, as in
    gen_mt.py); None: the chat template's own."""
    given = config.turns_system_prompt
    return PROMPT.read_text().strip() if given == "paper" else given


def cell(config: SynthConfig, context: Context) -> Row | None:
    """What determines a finished conversation; None for a recipe of single turns."""
    if config.turns == 1:
        return None
    half = _half_determines(config, context)
    return {**half, "turns": config.turns, "end_with": config.end_with}


def _half_determines(config: SynthConfig, context: Context) -> Row:
    """What determines a half-turn, besides the words before it."""
    determines = {
        "teacher": context.revision(config.teacher),
        "responder": context.revision(config.responder or config.teacher),
        "instruction": config.instruction,
        "response": config.response,
        "system_prompt": system_prompt(config),
        "seed": config.seed,
        "VERSION": [VERSION, single_turn.VERSION, templates.VERSION],
    }
    if config.seeds != "per_row":
        determines["seeds"] = config.seeds
    if has_plain_headers(config.teacher.model):
        determines["stop_strings"] = STOP_STRINGS
    if config.first_token:
        determines["first_token"] = config.first_token.model_dump(exclude_defaults=True)
    return determines


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

    def says(self, half: Row) -> None:
        """Add a finished half-turn."""
        self.messages.append({"role": self.role, "content": half["text"]})
        self.tokens += half["tokens"] or 0
        self.prompt_tokens += half["prompt_tokens"] or 0

    def fails(self, problem: str) -> None:
        """Give the conversation up; the reason says at which half-turn."""
        self.problem = f"turn {len(self.messages) // 2 + 1}, {self.role}: {problem}"


@dataclass(frozen=True)
class Side:
    """One side of the conversation: its model, how it thinks, whether its prompt opens a think
    block, the request for its next message, and the rule for its first token."""

    served: Served
    thinking: Thinking | None
    opened: bool | None
    body: Callable[[Talk], Row]
    chain: Chain


def user_side(
    served: Served,
    sampling: Sampling,
    system: str | None,
    first: FirstToken | None = None,
    *,
    seeded: bool = True,
) -> Side:
    """Writes the user's next message, with a seed of the row's and turn's own where `seeded`.

    Raises UserError where the chat template refuses or ignores the system prompt.
    """
    tokenizer = served.tokenizer
    template = pre_query(tokenizer, system or DEFAULT)
    stops = ending(template.stop_token_ids, template.stop_strings, sampling)
    before = [{"role": "system", "content": system}] if system else []

    def body(talk: Talk) -> Row:
        asked = {**sampling, "prompt": follow_up(tokenizer, [*before, *talk.messages]), **stops}
        asked.pop("seed", None)
        if seeded:
            number = digest([talk.id, len(talk.messages), sampling.get("seed")])[:8]
            asked["seed"] = int(number, 16) % 2**31
        return asked

    # A user's message is never opened by a generation prompt, so only a think block of the model's
    # own is one.
    return Side(served, thinking_of(tokenizer), False, body, Chain(first))


def assistant_side(served: Served, sampling: Sampling) -> Side:
    """Answers the user's last message."""
    tokenizer = served.tokenizer
    thinking = thinking_of(tokenizer)
    fixed = {**(thinking.sampling if thinking else {}), **sampling}

    def body(talk: Talk) -> Row:
        prompt = encode_conversation(tokenizer, talk.messages, add_generation_prompt=True)
        return {**fixed, "prompt": prompt}

    return Side(served, thinking, None, body, Chain(None))


def compute(rows: pl.DataFrame, config: SynthConfig, context: Serving) -> Frames:
    """Continue the conversations of rows [id, instruction, response] to `synth.turns` turns; frames
    [id, *FIELDS, status, reason] as they finish.

    An empty or cut-off message, a thought that never ended, a prompt that leaves no room in
    max_model_len, and a failed request fail the row, with turn and side in the reason.
    """
    teacher, rule = context.serve(config.teacher), config.first_token
    first = first_token(teacher.tokenizer, rule.suppress, rule.temperature) if rule else None
    own = seeded(config, context.servers, context.root)
    user = user_side(teacher, config.instruction, system_prompt(config), first, seeded=own)
    assistant = assistant_side(context.serve(config.responder or config.teacher), config.response)
    journal = Column.open(context.root, "half_turns", _half_determines(config, context), _HALF)
    length = 2 * config.turns - (config.end_with == "user")
    talks = [
        Talk(row, pair(question, answer))
        for row, question, answer in rows.select("id", "instruction", "response").iter_rows()
    ]
    return batched(continued(talks, length, user, assistant, journal), FIELDS)


def continued(
    talks: list[Talk], length: int, user: Side, assistant: Side, journal: Column
) -> Iterator[Row]:
    """Each conversation as a row, once it has `length` messages or has failed.

    What `journal` holds of them is not asked again, and what is said now is kept there.
    """
    _recall(talks, length, journal)
    # One server: a conversation's turns are a chain. Two: each side speaks in its turn.
    together = user.served.spec == assistant.served.spec
    speakers = _Speakers({"user": user, "assistant": assistant}, length, together, journal)
    try:
        waiting: list[Talk] = []
        arriving: Iterable[Talk] = talks
        while True:
            for talk in arriving:
                if speakers.over(talk):
                    yield _row(talk)
                else:
                    waiting.append(talk)
            if not waiting:
                return
            role = waiting[0].role
            group = [talk for talk in waiting if together or talk.role == role]
            waiting = [talk for talk in waiting if not together and talk.role != role]
            arriving = speakers.stream(group)
    finally:
        journal.compact()  # tasks of a cluster write side by side; one of them merges


@dataclass(frozen=True)
class _Speakers:
    """Both sides, how many messages a conversation is to have, whether both are asked at once, and
    where finished half-turns go."""

    sides: Mapping[str, Side]
    length: int
    together: bool
    journal: Column

    def over(self, talk: Talk) -> bool:
        """Whether nothing more is to be said."""
        return talk.problem is not None or len(talk.messages) >= self.length

    def stream(self, group: list[Talk]) -> Iterator[Talk]:
        """Let the conversations go on as far as one server can take them; each comes back once,
        over, or waiting for the other side."""
        by_id = {talk.id: talk for talk in group}
        return exchanged(
            group,
            lambda talk: self._request(talk) or talk,
            lambda reply: by_id[reply.key],
            self.sides[group[0].role].served.endpoint,
            lambda reply: self._after(by_id[reply.key], reply),
        )

    def _request(self, talk: Talk) -> Request | None:
        """The request for the next half-turn; None, and the conversation has failed, where its
        prompt leaves no room."""
        side = self.sides[talk.role]
        body = side.body(talk)
        problem = fit(body, context_length(side.served.endpoint))
        if problem:
            talk.fails(problem)
            return None
        return side.chain.begin(Request(talk.id, body))

    def _after(self, talk: Talk, reply: Reply) -> Request | None:
        """Take in a reply, and ask for what follows it on the same server, if anything."""
        side = self.sides[talk.role]
        rest = side.chain.then(reply)
        if rest is not None:
            return rest
        half = generated(side.chain.join(reply), "text", side.thinking, side.opened)
        cut = "cut off before its end" if half.get("finish_reason") == "length" else None
        problem = half.get("reason") or cut
        if problem:
            talk.fails(problem)
            talk.tokens += half.get("tokens") or 0
            return None
        kept = {name: half.get(name) for name in _HALF}
        self.journal.append([{**kept, "id": talk.key, "row": talk.id}])
        talk.says(half)
        return self._request(talk) if self.together and not self.over(talk) else None


def _recall(talks: list[Talk], length: int, journal: Column) -> None:
    """Let the conversations say what they said before, as far as the journal knows."""
    ids = pl.DataFrame({"row": [talk.id for talk in talks]}, schema={"row": pl.String})
    held = journal.read(ids).filter(pl.col("status") != FAILED)
    known = {half["id"]: half for half in held.iter_rows(named=True)}
    for talk in talks:
        while len(talk.messages) < length and (half := known.get(talk.key)):
            talk.says(half)


def _row(talk: Talk) -> Row:
    spent = {"tokens": talk.tokens, "prompt_tokens": talk.prompt_tokens}
    if talk.problem:
        return failed(talk.id, talk.problem, **spent)
    turns = sum(message["role"] == "user" for message in talk.messages)
    return {"id": talk.id, "messages": talk.messages, "turns": turns, **spent, "status": OK}
