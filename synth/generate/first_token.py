"""The first token of an instruction under a rule of its own: some tokens suppressed, or another
temperature.

The original masks "#" to "####" for Llama-3.1 and raises the first token's temperature 1.2 times
for Qwen2.5-Math ("flaming") by logits processors inside the engine (str_utils.py:366-384). A
server's `logit_bias` acts on every position, so here one request draws one token, and a second one,
with a seed of its own, continues from it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.errors import UserError
from core.wire import Reply, Request
from synth.generate.ask import Row, spent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKDOWN = "markdown"
"""`suppress: markdown` stands for every token of the vocabulary that is nothing but the opening of
a heading, a bold text or a rule."""

_MARKDOWN = re.compile(r"\s*(#{1,6}|\*{2,3}|_{2,3}|-{3,}|={3,})\s*")
_BIAS = -100.0
_NO_IDS = (
    "the server gives no token ids (vLLM's `return_token_ids`), "
    "so that the text cannot be continued"
)


@dataclass(frozen=True)
class FirstToken:
    """`banned`: token ids that must not come first; `temperature`: of the first token, None for the
    row's own; `tokenizer`: to join the texts."""

    banned: tuple[int, ...]
    temperature: float | None
    tokenizer: PreTrainedTokenizerBase


def first_token(
    tokenizer: PreTrainedTokenizerBase, suppress: str | Sequence[str], temperature: float | None
) -> FirstToken:
    """The rule for this tokenizer. `suppress`: "markdown", or texts that are one token each. Raises
    UserError for a text that is not one."""
    if suppress == MARKDOWN:
        return FirstToken(markdown_openers(tokenizer), temperature, tokenizer)
    banned = tuple(_single_token(tokenizer, text) for text in suppress)
    return FirstToken(banned, temperature, tokenizer)


def _single_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        return int(ids[0])
    raise UserError(
        f"synth.first_token.suppress: {text!r} is {len(ids)} tokens for {tokenizer.name_or_path}, "
        "and only single tokens can be suppressed; "
        f"name one of {tokenizer.convert_ids_to_tokens(ids)} instead."
    )


def markdown_openers(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the tokens whose whole text is a markdown opener, with or without space around it; no
    words, no code such as "#include"."""
    ids = sorted(tokenizer.get_vocab().values())
    texts = tokenizer.batch_decode([[i] for i in ids])
    return tuple(i for i, text in zip(ids, texts, strict=True) if _MARKDOWN.fullmatch(text))


class Chain:
    """Requests of one stream in two steps each: `begin` makes the one-token request, `then` the one
    that continues, `join` puts them together. Without a rule requests and replies stay as they
    are."""

    def __init__(self, rule: FirstToken | None) -> None:
        self._rule = rule
        self._bodies: dict[str, Row] = {}
        self._first: dict[str, tuple[Reply, list[int], list[str]]] = {}

    def begin(self, request: Request) -> Request:
        """The request for the first token alone."""
        if self._rule is None:
            return request
        self._bodies[request.key] = request.body
        body = {**request.body, "max_tokens": 1, "return_token_ids": True}
        if "min_tokens" in body:
            body["min_tokens"] = min(body["min_tokens"], 1)
        if self._rule.temperature is not None:
            body["temperature"] = self._rule.temperature
        if self._rule.banned:
            banned = {str(i): _BIAS for i in self._rule.banned}
            body["logit_bias"] = {**body.get("logit_bias", {}), **banned}
        return Request(request.key, body, request.path)

    def then(self, reply: Reply) -> Request | None:
        """The request that continues from the first token; None where the text is over (an end at
        once, an error) or this was it."""
        body = self._bodies.pop(reply.key, None)
        if body is None or body.get("max_tokens") == 1:
            return None
        choice = _choice(reply)
        ids = choice.get("token_ids")
        stops = body.get("stop_token_ids", [])
        # Some servers count the limit before the stop.
        if not ids or choice.get("finish_reason") != "length" or ids[-1] in stops:
            return None
        self._first[reply.key] = reply, stops, body.get("stop", [])
        rest = {**body, "prompt": [*body["prompt"], *ids], "return_token_ids": True}
        for limit in ("max_tokens", "min_tokens"):
            if body.get(limit) is not None:
                rest[limit] = max(body[limit] - 1, 0)
        if body.get("seed") is not None:
            # The same seed would begin with the very noise that chose the first token.
            seed = hashlib.sha256(f"{body['seed']} rest".encode()).digest()[:4]
            rest["seed"] = int.from_bytes(seed) % 2**31
        return Request(reply.key, rest)

    def join(self, reply: Reply) -> Reply:
        """The reply of the whole text: the first token's text and tokens before the rest's."""
        if self._rule is None:
            return reply
        two = _choice(reply)
        if reply.key not in self._first:
            unnumbered = two.get("finish_reason") == "length" and two.get("token_ids") is None
            return Reply(reply.key, None, _NO_IDS) if unnumbered else reply
        first, stops, words = self._first.pop(reply.key)
        if not two:
            return reply
        one = _choice(first)
        text = one["text"] + two["text"]
        # Half a character: only both together have a text.
        if not one["text"] or "�" in one["text"]:
            ids = [*one["token_ids"], *two.get("token_ids", ())]
            spoken = ids[:-1] if ids[-1] in stops else ids
            text = str(self._rule.tokenizer.decode(spoken, skip_special_tokens=True))
        cost, rest = spent(first), spent(reply)
        usage = {
            "prompt_tokens": cost["prompt_tokens"],
            "completion_tokens": (cost["tokens"] or 0) + (rest["tokens"] or 0),
        }
        body = {**(reply.body or {}), "choices": [_ended({**two, "text": text}, words)]}
        body["usage"] = usage
        return replace(reply, body=body, attempts=first.attempts + reply.attempts)


def _ended(choice: Row, words: list[str]) -> Row:
    """A choice whose text ends before the first of the stop strings. The server knows only its own
    half: a string that begins in the first token has gone past it."""
    found = [(choice["text"].find(word), word) for word in words if word in choice["text"]]
    if not found:
        return choice
    place, word = min(found)
    return {
        **choice,
        "text": choice["text"][:place],
        "finish_reason": "stop",
        "stop_reason": word,
    }


def _choice(reply: Reply) -> Row:
    """The first choice, empty where there is none."""
    if reply.error or not reply.body:
        return {}
    choices = reply.body.get("choices") or [{}]
    return choices[0] or {}
