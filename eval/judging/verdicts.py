"""Reading a judge's verdict: pure functions on the judge's own output, never on what was judged.

`read` settles a reply by the rules of its protocol, one function a kind in `READ`.
Arena-Hard v0.1 and v2.0 read labels by different rules (arena-hard-auto 196f6b82, and efc012e for
v0.1); AlpacaEval 2 reads the log-probabilities of the first token (alpaca_eval,
weighted_alpaca_eval_gpt4_turbo).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from core.columns import FAILED, OK
from eval.judging.asking.journal import Cell, Draft, Row
from eval.protocols import (
    AlpacaConfig,
    ArenaConfig,
    PairwiseProtocol,
    RatedProtocol,
    RewardProtocol,
)

T = TypeVar("T")
Judged = PairwiseProtocol | RatedProtocol | RewardProtocol

LABELS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
"""The five verdicts, best for the first answer to best for the second."""

CHOICES = ("A++", "A+", "A=B", "B+", "B++")
"""WildBench's five verdicts on two answers, in the same order."""

_MIRRORED = {"A<<B": "B>>A", "A<B": "B>A", "B=A": "A=B", "B<A": "A>B", "B<<A": "A>>B"}
_DOUBLE = re.compile(r"\[\[([AB<>=]+)\]\]")
_SINGLE = re.compile(r"\[([AB<>=]+)\]")
_CLOSING_SCORE = re.compile(r"""["']score["']\s*:\s*["']?(\d+(?:\.\d+)?)["']?\s*,?\s*\}$""")
_CLOSING_CHOICE = re.compile(r"""["']choice["']\s*:\s*["']\s*([AB]\+\+?|A=B)\s*["']\s*,?\s*\}$""")
_CLOSING_RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]\W*$")
_PREFERENCE = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}


class NoLogprobs(ValueError):
    """A reply without the log-probabilities that were asked for."""

    def __init__(self) -> None:
        super().__init__("the reply holds no log-probabilities")


def own_words(text: str) -> str:
    """What a thinking judge says after its thoughts (after the last `</think>`); nothing when it
    was cut in them; any other text as it is."""
    _, ended, words = text.rpartition("</think>")
    if ended:
        return words
    return "" if text.lstrip().startswith("<think>") else text


def words_of(text: str) -> str:
    """What a model that was evaluated answers after its thoughts (`<think> … </think>`, of which
    its chat template may have written the beginning); "" when it was cut in them. An answer that
    speaks of these tags stays as it is."""
    thoughts, ended, words = text.partition("</think>")
    began = text.lstrip().startswith("<think>")
    if not began and "<think>" in thoughts:
        return text
    if ended:
        return words.lstrip()
    return "" if began else text


def labels_v01(text: str) -> set[str]:
    """The distinct [[labels]] in a text, valid or not; empty means that v0.1 asks the judge to
    continue."""
    return set(_DOUBLE.findall(text))


def parse_v01(text: str) -> str | None:
    """Arena-Hard v0.1: the label when exactly one distinct [[label]] occurs (however often) and it
    is one of `LABELS`, else None."""
    labels = list(labels_v01(text))
    return labels[0] if len(labels) == 1 and labels[0] in LABELS else None


def parse_v2(text: str) -> str | None:
    """Arena-Hard v2.0: the last [[label]] of the upper-cased text, or the last [label] when none is
    in double brackets.

    Mirrored spellings (A<B, B=A …) are turned into `LABELS`. None when there is no label, or when
    the last one is no verdict ([[A]], where the official code raises KeyError).
    """
    upper = text.upper()
    labels = _DOUBLE.findall(upper) or _SINGLE.findall(upper) or [""]
    label = _MIRRORED.get(labels[-1], labels[-1])
    return label if label in LABELS else None


PARSE = {"v0.1": parse_v01, "v2.0": parse_v2}


def first_preferred(label: str) -> float:
    """A label of `LABELS` as P(the first answer is better): 1, 0.5 or 0; how clear the win was
    stays in the label."""
    return _PREFERENCE[label]


def parse_code(text: str, codes: tuple[str, str]) -> float | None:
    """A written one-word verdict as P(first preferred): 1 for `codes[0]`, 0 for `codes[1]`, None
    for anything else.

    Surrounding spaces, quotes and full stops are not counted; the case is, since m and M differ in
    nothing else.
    """
    word = text.strip().strip("\"'`*.").strip()
    return {codes[0]: 1.0, codes[1]: 0.0}.get(word)


def verdict_mass(top: Mapping[str, float], codes: tuple[str, str]) -> tuple[float | None, float]:
    """(P(first preferred), mass): from the first token's log-probabilities by token; a code absent
    from `top` counts as probability 0.

    P(first) = p(codes[0]) / (p(codes[0]) + p(codes[1])), None when neither is present; mass is the
    sum of the two. Tokens match exactly, as in alpaca_eval's logprob_parser.
    """
    first, second = (math.exp(top[code]) if code in top else 0.0 for code in codes)
    mass = first + second
    return (first / mass if mass > 0 else None), min(mass, 1.0)


def top_tokens(choice: Row) -> dict[str, float]:
    """Log-probabilities of the first generated token's candidates, by token, from a choice of
    either API.

    Completions give `logprobs.top_logprobs[0]` (a mapping), chat gives
    `logprobs.content[0].top_logprobs` (a list). A body without them raises KeyError, IndexError or
    TypeError.
    """
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict) or not (
        logprobs.get("content") or "top_logprobs" in logprobs
    ):
        raise NoLogprobs
    if "content" in logprobs:
        return {
            entry["token"]: float(entry["logprob"])
            for entry in logprobs["content"][0]["top_logprobs"]
        }
    return {token: float(value) for token, value in logprobs["top_logprobs"][0].items()}


def closing_score(text: str) -> float | None:
    """WildBench's form: the score of the JSON object that ends a text, or, when its quotes are
    broken, of the field that ends it; else None.

    Only the end counts, so that an object or a score which the judge quotes on its way is never
    taken for its own. From 1 to 10.
    """
    return _one_to_ten(_closing(text, "score", _CLOSING_SCORE))


def closing_choice(text: str) -> str | None:
    """WB-Reward's form: one of `CHOICES` as the choice of the JSON object that ends a text, read as
    `closing_score` reads a score; else None."""
    label = str(_closing(text, "choice", _CLOSING_CHOICE)).strip()
    return label if label in CHOICES else None


def _closing(text: str, field: str, ending: re.Pattern[str]) -> Any:
    """The value of a field of the JSON object that ends a text, or what `ending` finds where the
    object is broken; None for neither."""
    closing = text.strip().rstrip("`").rstrip()
    try:
        # strict=False: small judges write raw line breaks inside strings
        decoder = json.JSONDecoder(strict=False)
        value, end = decoder.raw_decode(closing, max(closing.find("{"), 0))
    except (ValueError, RecursionError):  # also a number or a nesting beyond what Python reads
        value, end = None, 0
    if isinstance(value, dict) and field in value and end == len(closing):
        return value[field]
    match = ending.search(closing)
    return match[1] if match else None


def closing_rating(text: str) -> float | None:
    """MT-Bench's form: the [[rating]] that ends a text, marks of punctuation aside, from 1 to 10;
    else None.

    Stricter than FastChat, which takes the first [[rating]] anywhere: that may be one which the
    judge quotes from the answer.
    """
    match = _CLOSING_RATING.search(text)
    return _one_to_ten(match[1]) if match else None


def _one_to_ten(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if not isinstance(value, bool) and 1 <= number <= 10 else None


REWARDS = {2: 1.0, 1: 0.5, 0: 0.0}
"""Reward of a win by its extent; a loss is the negative."""


def choice(text: Any, *, model_is_a: bool) -> tuple[int, int] | None:
    """(sign, extent) of a pairwise choice (A++, A+, A=B, B+, B++) for the model, or None for
    anything else."""
    label = str(text).strip()
    if label == "A=B":
        return 0, 0
    if label not in CHOICES:
        return None
    return (1 if (label[0] == "A") == model_is_a else -1), len(label) - 1


def worth(sign: int, extent: int, ours: int, theirs: int, margin: int | None = None) -> float:
    """The reward of one comparison: `ours` and `theirs` are the answers' characters, `margin` as in
    `reward`."""
    value = REWARDS[extent] * sign
    longer = ours - theirs if value > 0 else theirs - ours
    return 0.0 if margin is not None and abs(value) == 0.5 and longer > margin else value


@dataclass(frozen=True)
class Written:
    """What a judge wrote: the `choice` of the API's reply and its `text`; `draft` is what it wrote
    before, `codes` name the tokens that the protocol's codes are."""

    choice: Row
    text: str
    draft: Draft
    codes: Mapping[str, str]


Outcome = Cell | Draft
"""The value fields, status and reason of a settled judgment, or a draft that needs another turn."""

OPENING = "\n\nMy verdict: [["
"""What a constrained label completes."""


def read(protocol: Judged, written: Written) -> Outcome:
    """What a judge's words are under the rules of `protocol`.

    Raises KeyError, IndexError, TypeError or ValueError when log-probabilities that it reads are
    not there.
    """
    return READ[protocol.kind](protocol, written)


def _code(protocol: AlpacaConfig, written: Written) -> Outcome:
    """The probability that the first code has of both, or the code that was written."""
    codes, mass = protocol.codes, None
    missed = f"neither {codes[0]} nor {codes[1]}"
    if protocol.mode == "logprob":
        named = written.codes
        top = {
            named.get(token, token): value for token, value in top_tokens(written.choice).items()
        }
        first, mass = verdict_mass(top, codes)
        reason = f"{missed} is among the judge's first {len(top)} candidates"
    else:
        first = parse_code(own_words(written.text), codes)
        reason = f"the judge wrote {missed}"
    if first is None:
        return _settled(written.text, reason, mass=mass)
    label = None if first == 0.5 else codes[first < 0.5]
    return _settled(written.text, None, first, label, mass=mass)


def _label(protocol: ArenaConfig, written: Written) -> Outcome:
    """A label, a further turn where the protocol knows one, or why there is no label."""
    turn, before = written.draft.turn, written.draft.text
    constrained = turn == "constrain"
    added = f"{OPENING}{written.text}]]" if constrained else f"\n{written.text}"
    whole = f"{before}{added}".lstrip("\n")
    own = own_words(before) + own_words(added)
    label = PARSE[protocol.version](own)
    if label is not None:
        return _settled(whole, None, first_preferred(label), label, constrained=constrained)
    several = ", ".join(sorted(labels_v01(own)))
    official = protocol.version == "v0.1"
    if turn == "first" and not (several and official):
        if protocol.constrain:
            return Draft("constrain", whole)
        # The official code asks once more when, and only when, there is no label at all.
        if official:
            return Draft("continue", whole)
    missed = f"no single verdict: {several}" if several else "no verdict in the judge's text"
    return _settled(whole, missed)


def _rating(closing: Callable[[str], float | None], _: Judged, written: Written) -> Outcome:
    rating, missed = _closed(closing, written, "rating", " from 1 to 10")
    return {"rating": rating, "verdict": written.text, **_status(missed)}


def _choice(_: Judged, written: Written) -> Outcome:
    label, missed = _closed(closing_choice, written, "choice")
    if label is None:
        return _settled(written.text, missed)
    return _settled(written.text, None, 0.5 if label == "A=B" else float(label[0] == "A"), label)


READ: dict[str, Callable[[Any, Written], Outcome]] = {
    "alpaca": _code,
    "arena": _label,
    "wildbench": partial(_rating, closing_score),
    "wildbench-reward": _choice,
    "mtbench": partial(_rating, closing_rating),
}
"""How the words of a judge are read, by the protocol's `kind`."""


def _closed(
    closing: Callable[[str], T | None], written: Written, noun: str, form: str = ""
) -> tuple[T | None, str | None]:
    """What `closing` reads at the end of a judge's own words, or why there is nothing."""
    # What a text that was cut ends with may be a quotation.
    if written.choice.get("finish_reason") == "length":
        return None, f"the judge's text was cut off before its {noun}"
    value = closing(own_words(written.text))
    if value is None:
        return None, f"the judge's text does not end with a {noun}{form}"
    return value, None


def _settled(
    verdict: str,
    reason: str | None,
    first: float | None = None,
    label: str | None = None,
    *,
    mass: float | None = None,
    constrained: bool = False,
) -> Cell:
    values = {"first": first, "label": label, "verdict": verdict}
    return values | {"mass": mass, "constrained": constrained, **_status(reason)}


def _status(reason: str | None) -> Cell:
    return {"status": OK if reason is None else FAILED, "reason": reason}
