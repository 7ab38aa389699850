"""Chats with any OpenAI-compatible service: what a request says, and what an answer says.

No tokenizer is needed: messages go out as they are, and the service counts the tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.wire import Reply, Request

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

Message = dict[str, str]
"""{"role", "content"}."""


class Unsaid(Exception):
    """A chat that gave no usable text; its words are the reason, alike for alike causes so that
    they can be counted."""


@dataclass(frozen=True)
class Said:
    """What a chat answered: `text`, what it thought before (where the service shows that),
    `finish_reason` ("length": cut off at max_tokens), and the first choice as it came
    (log-probabilities stand in it)."""

    text: str
    thinking: str | None
    finish_reason: str | None
    choice: Mapping[str, Any]


def chat_body(
    messages: Sequence[Message],
    sampling: Mapping[str, Any],
    schema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of a chat request. `sampling`: the service's own parameters, verbatim; `schema`: the
    JSON schema that the answer must follow, asked for as structured outputs."""
    body = {**sampling, "messages": list(messages)}
    if schema is not None:
        form = {"name": "answer", "schema": dict(schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def chat_request(key: str, body: Mapping[str, Any]) -> Request:
    """The request of a chat body."""
    return Request(key, dict(body), CHAT)


_OPTIONAL = {
    "response_format": ("response_format", "json_schema", "structured"),
    "logprobs": ("logprob",),
    "top_logprobs": ("logprob",),
}
"""What a service may not offer -> the words by which it says so."""


def refused(request: Request, reply: Reply) -> list[str]:
    """The fields of a request without which it may be answered: what a service refused because it
    offers none of it (structured outputs, log-probabilities)."""
    error = (reply.error or "").lower() if reply.fault == "request" else ""
    there = [name for name in _OPTIONAL if name in request.body]
    return [name for name in there if re.search("|".join(_OPTIONAL[name]), error)]


def without(request: Request, fields: Iterable[str]) -> Request:
    """The same request without these fields."""
    body = {name: value for name, value in request.body.items() if name not in fields}
    return Request(request.key, body, request.path)


def said(reply: Reply) -> Said:
    """What a reply to a chat says. Raises Unsaid for a request that failed, for a refusal, for an
    answer that a content filter stopped, and for one without text."""
    if reply.body is None:
        raise Unsaid(_failure(reply.error or "empty reply"))
    choice = reply.body["choices"][0]
    message = choice["message"]
    ending = choice.get("finish_reason")
    if message.get("refusal") or ending == "refusal":
        raise Unsaid("the model refused to answer")
    if ending == "content_filter":
        raise Unsaid("stopped by the service's content filter")
    text, thinking = _text(message.get("content")), _thinking(message)
    if not text.strip():
        if ending == "length":
            raise Unsaid("cut off at max_tokens before any text")
        raise Unsaid("the answer holds no text")
    return Said(text.strip(), thinking, ending, choice)


def _failure(error: str) -> str:
    """Why a request failed, in one sentence. A service's content filter says much, each time
    otherwise."""
    lower = error.lower()
    if any(word in lower for word in ("content_filter", "content management policy")):
        return "refused by the service's content filter"
    return f"request failed: {error}"


def _text(content: Any) -> str:
    """The text of a message, which some services send in parts."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _thinking(message: Mapping[str, Any]) -> str | None:
    """What a thinking model thought, under the two names that are in use."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name].strip():
            return str(message[name]).strip()
    return None


def usage(body: Mapping[str, Any]) -> tuple[int, int]:
    """(prompt tokens, generated tokens) that a reply says it cost; 0 where it says nothing."""
    stated = body.get("usage")
    counts = stated if isinstance(stated, dict) else {}
    named = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, tokens = (count if isinstance(count, int) else 0 for count in named)
    return prompt_tokens, tokens


def most_tokens(sampling: Mapping[str, Any]) -> int:
    """The most tokens a request may generate (max_tokens, or OpenAI's newer max_completion_tokens);
    0 when it sets no limit."""
    return int(sampling.get("max_tokens") or sampling.get("max_completion_tokens") or 0)


def likely_tokens(body: Mapping[str, Any]) -> int:
    """About how many tokens a request's own text is: generous, as no tokenizer is known (two
    characters a token)."""
    texts = [message["content"] for message in body.get("messages", ())]
    given = body.get("input", ())
    texts += [given] if isinstance(given, str) else [text for text in given if type(text) is str]
    return sum(map(len, texts)) // 2
