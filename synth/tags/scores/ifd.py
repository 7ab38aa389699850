"""Instruction-following difficulty (IFD): how much an instruction helps a model to foresee the
answer.

    IFD = PPL(answer | instruction) / PPL(answer) = exp(mean NLL(answer | instruction) - mean
    NLL(answer))

as Superfiltering defines it (arXiv 2402.00530; Cherry LLM, arXiv 2308.12032, has the ratio of the
mean losses themselves in its code). Near 0: the instruction says it all; 1 and above: it helps not
at all, and such rows are usually dropped. NLL is in nats, the mean over the answer's tokens, the
same tokens in both. The condition is the conversation up to the assistant's turn by the model's own
chat template; the answer alone stands after BOS where the tokenizer puts one before a text, else
its first token, which nothing precedes, is left out of both. A model without a chat template (GPT-2
as the published scorer) reads the instruction and a line break, as Superfiltering's own prompt has
it; that code cuts long texts, here they fail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from core.columns import OK
from core.servers import Endpoint
from core.wire import Reply, Request, prompt_losses, scoring_request
from synth.chat import templates
from synth.chat.encoding import encode_question, encode_text, text_start
from synth.chat.families import family_of
from synth.config.synthesis import SynthConfig
from synth.context import Context, Serving
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of an IFD; raised when the same model would give other values."""


Scored = tuple[list[int], int]
"""Token ids, and the place from which on they are scored."""


@dataclass
class _Halves:
    """One row's two prompts, and what is known of it so far: their losses (mean NLL, nats) or what
    went wrong, and the tokens spent."""

    prompts: tuple[Scored, Scored]
    losses: list[float] = field(default_factory=list)
    problem: str | None = None
    cost: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOKENS, 0))

    def take(self, reply: Reply) -> None:
        """Add what the reply to the next prompt says, and what it cost."""
        for name, tokens in spent(reply).items():
            self.cost[name] += tokens or 0
        ids, place = self.prompts[len(self.losses)]
        try:
            self.losses.append(mean_loss(reply, ids, place))
        except Unreadable as error:
            self.problem = str(error)


def ifd(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint, column: str = "ifd"
) -> Frames:
    """IFD of responses by prompt log-probabilities: two requests of one token a row, the second at
    once in the first's place.

    `rows`: id, instruction, response. Yields [id, `column`, tokens, prompt_tokens, status, reason];
    a conversation longer than the server's `max_model_len` (where the recipe gives it), and an
    answer with no token that can be scored are failed cells.
    """
    start = text_start(tokenizer)
    # Without a BOS nothing precedes the answer's first token where it stands alone.
    skipped = 0 if start else 1
    limit = context_length(endpoint)
    waiting: dict[str, _Halves] = {}

    def ask(row: Row) -> Request | Row:
        before = _question(tokenizer, row["instruction"])
        answer = encode_text(tokenizer, row["response"])
        request = fitting(scoring_request(row["id"], before + answer), limit)
        if isinstance(request, Request) and len(answer) <= skipped:
            problem = f"an answer of {len(answer)} tokens has none that can be scored"
            return failed(row["id"], problem)
        given = before + answer, len(before) + skipped
        alone = start + answer, 1
        waiting[row["id"]] = _Halves((given, alone))
        return request

    def then(reply: Reply) -> Request | None:
        halves = waiting[reply.key]
        halves.take(reply)
        if halves.problem or len(halves.losses) == 2:
            return None
        return scoring_request(reply.key, halves.prompts[1][0])

    def read(reply: Reply) -> Row:
        return _ratio(reply.key, waiting.pop(reply.key), column)

    return asked(rows, ask, read, endpoint, {column: pl.Float64, **TOKENS}, then)


def _question(tokenizer: PreTrainedTokenizerBase, instruction: str) -> list[int]:
    """What stands before the answer."""
    if tokenizer.chat_template or family_of(str(tokenizer.name_or_path)):
        return encode_question(tokenizer, instruction)
    return text_start(tokenizer) + encode_text(tokenizer, f"{instruction}\n")


def mean_loss(reply: Reply, ids: list[int], place: int) -> float:
    """Mean NLL (nats) of `ids[place:]`, each given all before it, from a reply with
    `prompt_logprobs`. Raises Unreadable when it holds none."""
    choice = first_choice(reply)
    try:
        losses = prompt_losses(choice, ids, place, len(ids))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__} {error}"
        raise Unreadable(f"no log-probabilities of the prompt in the reply: {problem}") from error
    return math.fsum(losses) / len(losses)


def _ratio(key: str, halves: _Halves, column: str) -> Row:
    """The cell of a row, as far as its losses are known."""
    if halves.problem:
        return failed(key, halves.problem, **halves.cost)
    given, alone = halves.losses
    try:
        value = math.exp(given - alone)
    except OverflowError as error:
        return failed(key, str(error), **halves.cost)
    if not math.isfinite(value):
        return failed(key, "the IFD is not finite", **halves.cost)
    return {"id": key, column: value, **halves.cost, "status": OK}


def small_cell(config: SynthConfig, context: Context) -> dict[str, Any] | None:
    """What determines a `superfilter`; None without its model."""
    model = config.tags.superfilter
    if model is None or model.hosted:  # a service's log-probabilities of a text are not to be had
        return None
    return {"model": context.revision(model), "VERSION": [VERSION, templates.VERSION]}


def small(rows: Rows, config: SynthConfig, context: Serving) -> Frames:
    """The measure `superfilter` of rows [id, instruction, response]: the IFD of another model."""
    model = config.tags.superfilter
    if model is None:
        return iter(())
    served = context.serve(model)
    texts = only(rows, ("id", "instruction", "response"))
    return ifd(texts, served.tokenizer, served.endpoint, "superfilter")
