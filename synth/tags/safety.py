"""Safety verdicts of guard models over a conversation, asked by the guard's own chat template and
read exactly.

What the original did otherwise: it sent conversations of any length to a server of 4,096 tokens and
stored whatever text came back, an empty one included. Here a conversation that does not fit, and an
answer that is not a verdict, are failed cells. Some guards' templates (Llama-Guard-3-1B and 4) read
a message's content in parts and silently leave a plain string out, so the guard would call an empty
conversation safe: the template is tried once with marked messages before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from core.errors import UserError
from core.sending.chat import Said, chat_body
from core.servers import Endpoint
from synth.chat.encoding import encode_conversation, pair
from synth.generate.ask import Frames, Row, Rows, Sampling, Unreadable, answers, chats

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of a verdict; raised when the same guard would give other verdicts."""

MAX_TOKENS = 128
"""Tokens a verdict may take (the model cards give 100 and 128)."""
_FIELDS = dict.fromkeys(("safety", "safety_categories", "llama_guard_2"), pl.String)

# Model cards of Llama-Guard-2-8B, Llama-Guard-3-8B and Llama-Guard-4-12B: the codes of 2 and of 3
# and 4 mean different things from S5 on.
_LLAMA_2 = (
    "Violent Crimes",
    "Non-Violent Crimes",
    "Sex-Related Crimes",
    "Child Sexual Exploitation",
    "Specialized Advice",
    "Privacy",
    "Intellectual Property",
    "Indiscriminate Weapons",
    "Hate",
    "Suicide & Self-Harm",
    "Sexual Content",
)
_LLAMA_3 = (*_LLAMA_2[:4], "Defamation", *_LLAMA_2[4:], "Elections", "Code Interpreter Abuse")
# README of github.com/QwenLM/Qwen3Guard. "Jailbreak" is a category of prompts only.
_QWEN_3 = (
    "Violent",
    "Non-violent Illegal Acts",
    "Sexual Content or Sexual Acts",
    "PII",
    "Suicide & Self-Harm",
    "Unethical Acts",
    "Politically Sensitive Topics",
    "Copyright Violation",
    "Jailbreak",
)


Names = tuple[str, ...]
Verdict = tuple[str, list[str]]
"""(label, names of categories)"""


@dataclass(frozen=True)
class Guard:
    """One family of guards: how its models are named, the categories it knows, and how its verdict
    is read (None: the text is none)."""

    names: str
    categories: Names
    read: Callable[[str, Names], Verdict | None]


def _llama_guard(text: str, categories: Names) -> Verdict | None:
    """`safe`, or `unsafe` and on a second line codes such as `S1,S3`."""
    if not re.fullmatch(r"safe|unsafe\nS\d+(?:, ?S\d+)*", text):
        return None
    named = dict(enumerate(categories, 1))
    codes = [int(code) for code in re.findall(r"\d+", text)]
    if not named.keys() >= set(codes):
        return None
    return text.partition("\n")[0], [named[code] for code in dict.fromkeys(codes)]


def _qwen3guard(text: str, categories: Names) -> Verdict | None:
    """`Safety: Safe|Controversial|Unsafe`, then `Categories: ...` (None where safe) and for a
    response `Refusal: Yes|No`."""
    verdict = re.fullmatch(
        r"Safety: (Safe|Controversial|Unsafe)\nCategories: ([^\n]+)(?:\nRefusal: (?:Yes|No))?", text
    )
    if verdict is None:
        return None
    named = [name.strip() for name in verdict[2].split(",")]
    if not {*categories, "None"} >= set(named):
        return None
    return verdict[1].lower(), [name for name in dict.fromkeys(named) if name != "None"]


GUARDS: dict[str, Guard] = {
    "llama-guard-2": Guard(r"llama-?guard-?2", _LLAMA_2, _llama_guard),
    "llama-guard-3": Guard(r"llama-?guard-?3", _LLAMA_3, _llama_guard),
    "llama-guard-4": Guard(r"llama-?guard-?4", _LLAMA_3, _llama_guard),
    "qwen3guard": Guard(r"qwen3guard-gen", _QWEN_3, _qwen3guard),
}
"""Qwen3Guard-Stream has no verdict in words, so it is none of these."""


def family(model: str, given: str | None = None) -> str:
    """The guard's family: the one given, else by the model's name. Raises UserError when neither
    says."""
    for name, guard in GUARDS.items():
        if given == name or (given is None and re.search(guard.names, model, re.IGNORECASE)):
            return name
    raise UserError(
        f"synth.tags.safety: which guard is {given or model}? Known are {', '.join(GUARDS)}; "
        "say which one its answers are like with `family:`."
    )


def safety(
    rows: Rows,
    guard: str,
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    endpoint: Endpoint,
) -> Frames:
    """Verdicts over conversations, greedy; guards judge the last message, which is the response.

    `rows`: id, instruction, response; `guard`: a name in GUARDS; `sampling`: SamplingParams,
    verbatim. Yields [id, safety (safe, controversial or unsafe), safety_categories (the guard's
    names, ", " between; "" where there is none), llama_guard_2 (that guard's answer as the
    published sets hold it; null of any other), tokens, prompt_tokens, status, reason]. Raises
    UserError when the template leaves the conversation out.
    """
    parts = content_parts(tokenizer)

    def body(row: Row) -> Row:
        talk = pair(row["instruction"], row["response"])
        ids = encode_conversation(tokenizer, talk, add_generation_prompt=True, content_parts=parts)
        return {"temperature": 0.0, "max_tokens": MAX_TOKENS, **sampling, "prompt": ids}

    def read(choice: Row) -> Row:
        return _verdict(guard, choice["text"], choice.get("finish_reason"))

    return answers(rows, body, read, endpoint, _FIELDS)


def chat_safety(rows: Rows, guard: str, sampling: Sampling, endpoint: Endpoint) -> Frames:
    """As `safety`, by a guard behind a service that chats, which renders the conversation itself;
    null takes a parameter out."""
    asked = {"temperature": 0.0, "max_tokens": MAX_TOKENS, **sampling}
    given = {name: value for name, value in asked.items() if value is not None}

    def body(row: Row) -> Row:
        return chat_body(pair(row["instruction"], row["response"]), given)

    def read(answer: Said) -> Row:
        return _verdict(guard, answer.text, answer.finish_reason)

    return chats(rows, body, read, endpoint, _FIELDS)


def _verdict(guard: str, text: str, finish_reason: str | None) -> Row:
    """What a guard's answer says. Raises Unreadable where it is no verdict."""
    text, chosen = text.strip(), GUARDS[guard]
    if finish_reason == "length":
        raise Unreadable(f"no verdict within max_tokens: {text[:60]!r}")
    verdict = chosen.read(text, chosen.categories)
    if verdict is None:
        raise Unreadable(f"no verdict: {text[:60]!r}")
    label, categories = verdict
    return {
        "safety": label,
        "safety_categories": ", ".join(categories),
        "llama_guard_2": text if guard == "llama-guard-2" else None,
    }


def content_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template reads a message's content as parts; found out by marked messages. Raises
    UserError when it shows them neither way."""
    marks = "Xq7UserSaysXq7", "Xq7AgentSaysXq7"
    for parts in (False, True):
        try:
            ids = encode_conversation(
                tokenizer, pair(*marks), add_generation_prompt=True, content_parts=parts
            )
        except (UserError, TypeError):  # a template that adds a list of parts to a string
            continue
        shown = tokenizer.decode(ids)
        if all(mark in shown for mark in marks):
            return parts
    raise UserError(
        f"the chat template of {tokenizer.name_or_path} leaves the conversation out, "
        "so this guard would judge nothing."
    )
