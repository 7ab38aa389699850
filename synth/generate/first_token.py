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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.wire import Reply, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKDOWN = "markdown"
"""`suppress: markdown` stands for every token of the vocabulary that is nothing but the opening of
a heading, a bold text or a rule."""

_MARKDOWN = re.compile(r"\s*(#{1,6}|\*{2,3}|_{2,3}|-{3,}|={3,})\s*")
_BIAS = -100.0


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
    banned = []
    for text in [suppress] if isinstance(suppress, str) else suppress:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UserError(
                f"synth.first_token.suppress: {text!r} is {len(ids)} tokens for {tokenizer.name_or_path}, and only single tokens can be suppressed; "
                f"name one of {tokenizer.convert_ids_to_tokens(ids)} instead."
            )
        banned.append(int(ids[0]))
    return FirstToken(tuple(banned), temperature, tokenizer)


def markdown_openers(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the tokens whose whole text is a markdown opener, with or without space around it; no
    words, no code such as "#include"."""
    ids = sorted(tokenizer.get_vocab().values())
    return tuple(
        i
        for i, text in zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True)
        if _MARKDOWN.fullmatch(text)
    )


class Chain:
    """Requests of one stream in two steps each: `begin` makes the one-token request, `then` the one
    that continues, `join` puts them together."""

    def __init__(self, rule: FirstToken) -> None:
        self.rule = rule
        self._bodies: dict[str, dict[str, Any]] = {}
        self._first: dict[str, tuple[Reply, frozenset[int]]] = {}

    def begin(self, request: Request) -> Request:
        """The request for the first token alone."""
        self._bodies[request.key] = request.body
        body = {**request.body, "max_tokens": 1, "return_token_ids": True}
        if "min_tokens" in body:
            body["min_tokens"] = min(body["min_tokens"], 1)
        if self.rule.temperature is not None:
            body["temperature"] = self.rule.temperature
        if self.rule.banned:
            body["logit_bias"] = {
                **body.get("logit_bias", {}),
                **{str(i): _BIAS for i in self.rule.banned},
            }
        return Request(request.key, body, request.path)

    def then(self, reply: Reply) -> Request | None:
        """The request that continues from the first token; None where the text is over (an end at
        once, an error) or this was it."""
        body = self._bodies.pop(reply.key, None)
        choice = _choice(reply)
        ids = (choice or {}).get("token_ids") or []
        if (
            body is None
            or choice is None
            or choice.get("finish_reason") != "length"
            or body.get("max_tokens") == 1
            or not ids
        ):
            return None
        if ids[-1] in body.get("stop_token_ids", ()):  # some servers count the limit first
            return None
        self._first[reply.key] = reply, frozenset(body.get("stop_token_ids", ()))
        rest = {**body, "prompt": [*body["prompt"], *ids], "return_token_ids": True}
        if body.get("max_tokens") is not None:
            rest["max_tokens"] = body["max_tokens"] - 1
        if "min_tokens" in body:
            rest["min_tokens"] = max(body["min_tokens"] - 1, 0)
        if body.get("seed") is not None:
            # The same seed would begin with the very noise that chose the first token.
            rest["seed"] = (
                int.from_bytes(hashlib.sha256(f"{body['seed']} rest".encode()).digest()[:4]) % 2**31
            )
        return Request(reply.key, rest)

    def join(self, reply: Reply) -> Reply:
        """The reply of the whole text: the first token's text and tokens before the rest's."""
        first, stops = self._first.pop(reply.key, (None, frozenset()))
        one, two = _choice(first), _choice(reply)
        if first is None or reply.body is None or one is None or two is None:
            if first is None and _unnumbered(reply):
                return Reply(
                    reply.key,
                    None,
                    "the server gives no token ids (vLLM's `return_token_ids`), so that the text cannot be continued",
                )
            return reply
        text = f"{one['text']}{two['text']}"
        if (
            not one["text"] or "�" in one["text"]
        ):  # half a character: only both together have a text
            ids = [*one["token_ids"], *two.get("token_ids", ())]
            text = str(
                self.rule.tokenizer.decode(
                    ids[:-1] if ids[-1] in stops else ids, skip_special_tokens=True
                )
            )
        before, after = (b.get("usage") or {} for b in (first.body or {}, reply.body))
        usage = {
            **before,
            "completion_tokens": (before.get("completion_tokens") or 0)
            + (after.get("completion_tokens") or 0),
        }
        return Reply(
            reply.key,
            {**reply.body, "choices": [{**two, "text": text}], "usage": usage},
            None,
            first.attempts + reply.attempts,
        )


def _choice(reply: Reply | None) -> dict[str, Any] | None:
    choices = (reply.body or {}).get("choices") if reply and not reply.error else None
    return choices[0] if choices else None


def _unnumbered(reply: Reply) -> bool:
    """A first token that should be continued but came without its id."""
    choice = _choice(reply)
    return (
        choice is not None
        and choice.get("finish_reason") == "length"
        and choice.get("token_ids") is None
    )
