"""Label mode: a label is one of a few one-token codes, read from the log-probabilities of a token.

Nothing constrains that token: only so does the codes' mass, what they carry of the probability,
say whether the model answers in codes at all. A mass under a floor is a failed cell, since what is
left then would be noise brought to 1. Of vLLM the codes' own tokens are asked for
(`logprob_token_ids`); another server gives its likeliest tokens, by id or by text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import UserError
from core.wire import Reply, Request
from synth.generate.ask import Frames, Row, Unreadable
from synth.tags.asking.tag import Tag

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FLOOR = 0.05
"""What codes must carry of the probability where a recipe says nothing else."""
LITTLE = 0.5
"""A mean mass under which the person watching is told."""
TOP = 20
"""Likeliest tokens that are asked for: vLLM's most."""
_BY_ID = ("logprob_token_ids", "return_tokens_as_token_ids")
"""Fields that vLLM alone knows."""


@dataclass(frozen=True)
class Codes:
    """A tag's codes as one tokenizer writes them: token id -> code."""

    tag: Tag
    by_id: Mapping[int, str]

    @property
    def body(self) -> Row:
        """What a request says besides its prompt."""
        return {
            "max_tokens": 1,
            "logprobs": TOP,
            "logprob_token_ids": sorted(self.by_id),
            "return_tokens_as_token_ids": True,
        }

    def read(self, choice: Row) -> dict[str, float]:
        """The probability of each code in a completion's first choice."""
        tops = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
        return summed(self.tag, ((self._text(k), v) for k, v in (tops[0] or {}).items()))

    def _text(self, token: str) -> str:
        """A token as the server names it, as a code or as text."""
        _, numbered, number = token.rpartition("token_id:")
        return self.by_id.get(int(number), "") if numbered and number.isdecimal() else token


def codes_of(tag: Tag, tokenizer: PreTrainedTokenizerBase) -> Codes:
    """The tokens that say a tag's codes: at the start of a line and behind a space. Raises
    UserError when a code is not one token."""
    by_id: dict[int, str] = {}
    for code in tag.codes:
        for before in ("\n", " ", ""):
            token = int(tokenizer(before + code, add_special_tokens=False)["input_ids"][-1])
            if tokenizer.decode([token]).strip() == code:
                by_id[token] = code
    if {*by_id.values()} != {*tag.codes}:
        raise UserError(
            f"the codes {tag.codes[0]} to {tag.codes[-1]} are not one token each "
            f"for {tokenizer.name_or_path}; use mode: explain."
        )
    return Codes(tag, by_id)


def summed(tag: Tag, tokens: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The probability of each code, from (text, log-probability) of tokens."""
    mass = dict.fromkeys(tag.codes, 0.0)
    for text, log_probability in tokens:
        if text.strip() in mass:
            mass[text.strip()] += math.exp(log_probability)
    return mass


def label_of(tag: Tag, mass: Mapping[str, float], floor: float) -> Row:
    """Label of the likeliest code, and the expected rank (1.0 is the lowest label) or number under
    the codes' probabilities brought to 1; `mass` is what they carry.

    Raises Unreadable where they carry nothing; less than `floor` is no value but the mass alone.
    """
    total = sum(mass.values())
    if total <= 0:
        raise Unreadable("no label code among the answer's log-probabilities")
    row: Row = {tag.mass: min(total, 1.0)}
    if total < floor:
        return row
    if tag.kind == "number":
        weighed = zip(map(float, tag.labels), mass.values(), strict=True)
        return row | {tag.label: sum(number * p for number, p in weighed) / total}
    best = max(mass, key=mass.__getitem__)  # of equal ones the first
    row[tag.label] = tag.labels[tag.codes.index(best)]
    if tag.rank:
        row[tag.rank] = sum(rank * p for rank, p in enumerate(mass.values(), 1)) / total
    return row


def too_little(floor: float) -> str:
    """Why a cell failed whose codes carry less than the floor."""
    return f"the codes carry less than {floor:g} of the probability"


def watched(frames: Frames, tag: Tag, say: Callable[[str], None]) -> Frames:
    """The same frames; at their end it is said where the codes carry little of the probability."""
    rows, total = 0, 0.0
    for frame in frames:
        masses = frame[tag.mass].drop_nulls()
        rows, total = rows + len(masses), total + float(masses.sum())
        yield frame
    if rows and total < LITTLE * rows:
        say(
            f"{tag.label}: the codes carry {total / rows:.2f} of the probability on average of "
            f"{rows:,} rows; this model would rather say something else, so its ranks are rough: "
            "take another tagger, or `mode: explain`"
        )


def refuses_ids(request: Request, reply: Reply) -> bool:
    """Whether a server refused the fields that vLLM alone knows."""
    asked = any(name in request.body for name in _BY_ID)
    error = reply.error or ""
    return asked and reply.fault == "request" and any(name in error for name in _BY_ID)


def by_text(request: Request) -> Request:
    """The same request by the likeliest tokens alone."""
    body = {name: value for name, value in request.body.items() if name not in _BY_ID}
    return Request(request.key, body, request.path)
