"""Checks that a program can make of an answer, in the manner of IFEval (arXiv 2311.07911): each
says what an instruction asked for in so many words, and each is followed or not.

A check is a mapping: `check` (its kind) and what that kind needs. An answer without a letter or
digit follows none, also none that forbids something. Upper and lower case are alike but in `case`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from core.errors import UserError, nearest

Check = Mapping[str, Any]

LIST_ITEM = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+\S", re.MULTILINE)
"""A line of a bulleted or numbered list."""
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)")
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""A block of code between fences, as Markdown has it."""


def follows(answer: str, check: Check) -> bool:
    """Whether an answer does what one check asks. `check` has passed `validated`."""
    if not re.search(r"\w", answer):
        return False
    return KINDS[check["check"]](answer.strip(), check)


def validated(check: Any, where: str) -> Check:
    """The check as it was written. Raises UserError, naming `where`, for an unknown kind, an
    unknown, missing or mistyped argument, and bounds that nothing can meet."""
    if not isinstance(check, Mapping) or not isinstance(check.get("check"), str):
        raise UserError(f"{where}: a check is a mapping with `check`, its kind, not {check!r}.")
    kind = check["check"]
    if kind not in ARGUMENTS:
        raise UserError(f"{where}: no check is called '{kind}'{nearest(kind, ARGUMENTS)}")
    allowed = ARGUMENTS[kind]
    for name, value in check.items():
        if name == "check":
            continue
        if name not in allowed:
            raise UserError(f"{where}: `{kind}` takes no `{name}`{nearest(name, allowed)}")
        if not _fits(value, allowed[name]):
            raise UserError(
                f"{where}: `{name}` of `{kind}` must be {allowed[name]}, not {value!r}."
            )
    if allowed and not check.keys() & allowed.keys():
        raise UserError(f"{where}: `{kind}` needs {' or '.join(allowed)}.")
    if check.get("at_least", 0) > check.get("at_most", float("inf")):
        raise UserError(f"{where}: `at_least` of `{kind}` is above `at_most`; nothing can be both.")
    return dict(check)


def _fits(value: Any, form: str) -> bool:
    """Whether a value has one of the forms of `ARGUMENTS`."""
    if form == NUMBER:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if form == CASE:
        return value in ("lower", "upper")
    return isinstance(value, list) and bool(value) and all(isinstance(t, str) and t for t in value)


NUMBER = "a whole number, 0 or more"
TEXTS = "a list of texts"
CASE = "lower or upper"
_BOUNDS = {"at_least": NUMBER, "at_most": NUMBER}

ARGUMENTS: dict[str, dict[str, str]] = {
    "words": _BOUNDS,
    "sentences": _BOUNDS,
    "paragraphs": _BOUNDS,
    "items": _BOUNDS,
    "contains": {"any": TEXTS, "all": TEXTS},
    "lacks": {"texts": TEXTS},
    "is": {"any": TEXTS},
    "starts": {"any": TEXTS},
    "ends": {"any": TEXTS},
    "case": {"of": CASE},
    "json": {"keys": TEXTS},
    "code": {"any": TEXTS},
}
"""What each kind of check takes beside its name, and in which form."""


def _within(count: int, check: Check) -> bool:
    fewest: int = check.get("at_least", 0)
    most: float = check.get("at_most", float("inf"))
    return fewest <= count <= most


def _words(answer: str, check: Check) -> bool:
    """Runs of characters between white space that hold a letter or digit."""
    return _within(sum(bool(re.search(r"\w", word)) for word in answer.split()), check)


def _sentences(answer: str, check: Check) -> bool:
    """Ends of sentences; what stands after the last one is a sentence too."""
    ends = [match.end() for match in SENTENCE_END.finditer(answer)]
    rest = answer[ends[-1] :] if ends else answer
    return _within(len(ends) + bool(re.search(r"\w", rest)), check)


def _paragraphs(answer: str, check: Check) -> bool:
    """Parts between blank lines."""
    parts = re.split(r"\n\s*\n", answer)
    return _within(sum(bool(part.strip()) for part in parts), check)


def _items(answer: str, check: Check) -> bool:
    return _within(len(LIST_ITEM.findall(answer)), check)


def _contains(answer: str, check: Check) -> bool:
    """`all` of the texts and at least one of `any`, as whole words."""
    every = all(_has(answer, text) for text in check.get("all", ()))
    return every and any(_has(answer, text) for text in check.get("any", ("",)))


def _has(answer: str, text: str) -> bool:
    """Whether a text stands in an answer, not as a part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", text) else ""
    after = r"(?!\w)" if re.search(r"\w$", text) else ""
    return bool(re.search(before + re.escape(text) + after, answer, re.IGNORECASE))


def _lacks(answer: str, check: Check) -> bool:
    return not any(_has(answer, text) for text in check["texts"])


def _is(answer: str, check: Check) -> bool:
    """Nothing but one of the texts; marks around it and a final stop do not count."""
    return _bare(answer) in {_bare(text) for text in check["any"]}


def _bare(text: str) -> str:
    return re.sub(r"^\W+|\W+$", "", text).casefold()


def _starts(answer: str, check: Check) -> bool:
    return any(answer.casefold().startswith(text.casefold()) for text in check["any"])


def _ends(answer: str, check: Check) -> bool:
    return any(answer.casefold().endswith(text.casefold()) for text in check["any"])


def _case(answer: str, check: Check) -> bool:
    return answer.islower() if check["of"] == "lower" else answer.isupper()


def _json(answer: str, check: Check) -> bool:
    """One JSON object, bare or in a fenced block, with all the keys."""
    fenced = FENCE.search(answer)
    text = fenced.group(1) if fenced else answer
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(check["keys"]) <= value.keys()


def _code(answer: str, check: Check) -> bool:
    """A fenced block that holds one of the texts."""
    blocks = [match.group(1) for match in FENCE.finditer(answer)]
    return any(_has(block, text) for block in blocks for text in check["any"])


KINDS: dict[str, Callable[[str, Check], bool]] = {
    "words": _words,
    "sentences": _sentences,
    "paragraphs": _paragraphs,
    "items": _items,
    "contains": _contains,
    "lacks": _lacks,
    "is": _is,
    "starts": _starts,
    "ends": _ends,
    "case": _case,
    "json": _json,
    "code": _code,
}
"""Kind -> whether an answer follows a check of it."""
