"""What pydantic refuses, in words for people: what is needed where, and what stands there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from core.errors import nearest

Problem = Mapping[str, Any]
Loc = tuple[int | str, ...]

NEEDED = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "string": "a text",
    "dict": "a mapping of keys",
    "mapping": "a mapping of keys",
    "model": "a mapping of keys",
    "list": "a list",
    "tuple": "a list",
}
"""What is needed, by the beginning of the type of a problem."""

BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
}
SIZES = {
    "too_short": ("min_length", "{0} or more entries"),
    "too_long": ("max_length", "{0} entries or fewer"),
    "string_too_short": ("min_length", "a text of {0} or more characters"),
    "string_too_long": ("max_length", "a text of {0} characters or fewer"),
}
FORMS = {
    r"^(full|none|every_[1-9]\d*_layers)$": "full, none or every_2_layers (or 3, ...)",
    r"^[a-z][a-z0-9_]*$": "small letters, digits and `_`, a letter first",
    r"^mtbench$|\.jinja$": "mtbench or the path of a .jinja file",
}
"""What patterns of texts say, in words."""

_TYPES = re.compile(
    r"int|float|str|bool|none|dict|list|tuple|literal|nullable|is-instance"
    r"|[A-Z]\w*(?:Config|Budget)?|(?:constrained|function|tagged|lax|json|chain)-.*|.*\[.*"
)
"""How pydantic names in a path which type of a union it tried."""


def written(problem: Problem, data: Any) -> Loc:
    """The path of a problem in what was written: without the types of unions that were tried."""
    found: list[int | str] = []
    here = data
    for key in problem["loc"]:
        known = isinstance(here, dict) and key in here
        if isinstance(here, (list, tuple)):
            known = isinstance(key, int) and key < len(here)
        if not known and isinstance(key, str) and _TYPES.fullmatch(key):
            continue
        here = here[key] if known else None
        found.append(key)
    return tuple(found)


def first(problems: Sequence[Problem], data: Any) -> tuple[Problem, Loc, list[Problem]]:
    """The problem to name, its path, and those of the same path: an unknown key before any other,
    and of a mapping what is wrong inside it before that it is no text."""
    unknown = [each for each in problems if each["type"] == "extra_forbidden"]
    paths = [written(each, data) for each in problems]
    inner = [
        each for each, path in zip(problems, paths, strict=True) if not _beside(each, path, paths)
    ]
    chosen = ([each for each in unknown if each in inner] or inner or list(problems))[0]
    path = written(chosen, data)
    if chosen["type"] == "missing" and isinstance(path[-1], int):  # of a list that is too short
        path = path[:-1]
        return {**chosen, "input": None}, path, [{**chosen, "type": "entry"}]
    same = [each for each in inner if written(each, data) == path]
    return chosen, path, same or [chosen]


def _beside(problem: Problem, path: Loc, paths: Sequence[Loc]) -> bool:
    """Whether a problem only says that a mapping or list is not the other thing that may stand
    there."""
    holds = isinstance(problem.get("input"), (dict, list))
    deeper = any(len(other) > len(path) and other[: len(path)] == path for other in paths)
    return holds and deeper and problem["type"] not in ("value_error", "missing", "extra_forbidden")


def said(problems: Sequence[Problem]) -> str:
    """What is needed at one place, and what is there."""
    given = problems[0].get("input")
    own = next((each for each in problems if each["type"] == "value_error"), None)
    if own is not None and re.fullmatch(r"value_error|\w+_(type|parsing)", problems[0]["type"]):
        sentence = _own(own)
        shown_already = sentence.endswith("?") or any(
            form in sentence for form in (str(given), repr(given))
        )
        return sentence if shown_already else _with_value(sentence, given)
    # Of a value of the right kind only its bound is of interest.
    bound = [each for each in problems if each["type"] in (*BOUNDS, *SIZES)]
    typed = [each for each in problems if each["type"] != "value_error"]
    needed = list(dict.fromkeys(_needed(each) for each in bound or typed))
    return _with_value(f"needs {' or '.join(needed)}", given) + _hint(problems, given)


def _own(problem: Problem) -> str:
    """A sentence of our own, as a validator raised it."""
    return str(problem["msg"]).removeprefix("Value error, ").removesuffix(".")


def _with_value(sentence: str, value: Any) -> str:
    plain = value is None or isinstance(value, (str, int, float))
    if isinstance(value, (list, tuple)):
        return f"{sentence} (it is a list)" if sentence.startswith("needs ") else sentence
    if isinstance(value, dict):
        return f"{sentence} (it is a mapping)" if sentence.startswith("needs ") else sentence
    return f"{sentence} (it is {shown(value)})" if plain else sentence


def shown(value: Any) -> str:
    """A value as a recipe has it, not too long."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        short = value if len(value) <= 60 else f"{value[:57]}..."
        return f"'{short}'" if short.isprintable() else repr(short)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _needed(problem: Problem) -> str:
    """What one problem says is needed."""
    kind, context = str(problem["type"]), problem.get("ctx") or {}
    if kind in BOUNDS:
        return BOUNDS[kind].format(**{name: _figure(bound) for name, bound in context.items()})
    if kind in SIZES:
        limit, form = SIZES[kind]
        return form.format(context[limit])
    if kind == "literal_error":
        words = str(context["expected"]).replace(" or ", ", ")
        return f"one of {words}" if "," in words else words
    if kind == "string_pattern_mismatch":
        return FORMS.get(context["pattern"], f"a text of the form {context['pattern']}")
    if kind == "finite_number":
        return "a finite number"
    if kind == "entry":
        return "another entry"
    beginning = kind.partition("_")[0]
    if beginning == "string" and isinstance(problem.get("input"), (int, float)):
        return "a text (in quotes)"
    return NEEDED.get(beginning, str(problem["msg"]).removeprefix("Input should be "))


def _figure(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"


def _hint(problems: Sequence[Problem], given: Any) -> str:
    """The nearest of the allowed words to what was written; empty where none is near."""
    words = [each["ctx"]["expected"] for each in problems if each["type"] == "literal_error"]
    names = re.findall(r"'([^']*)'", " ".join(words))
    hint = nearest(given, names) if isinstance(given, str) and given else ""
    return hint if "did you mean" in hint else ""


def sentence(error: ValidationError, data: Any) -> str:
    """`key`: what is needed, of the first problem of a block that was checked by itself."""
    problem, path, same = first(error.errors(), data)
    key = ".".join(map(str, path))
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{key}`"
    what = "is missing" if same[0]["type"] == "missing" else said(same)
    return f"{key}: {what}" if key else what


def coerced(data: Any, checked: Any, at: Loc = ()) -> tuple[Loc, str] | None:
    """The first place where pydantic made a number, truth value or text of something else that was
    written: (path, sentence); None where it did not.

    `true` is no number of rows, and a number in quotes is a text: its author may mean either.
    """
    if isinstance(data, dict):
        for key, value in data.items():
            found = coerced(value, _inside(checked, key), (*at, key))
            if found:
                return found
    elif isinstance(data, list) and isinstance(checked, (list, tuple)):
        for number, (value, inner) in enumerate(zip(data, checked, strict=False)):
            found = coerced(value, inner, (*at, number))
            if found:
                return found
    else:
        needed = _changed(data, checked)
        if needed:
            return at, f"needs {needed} (it is {shown(data)}{' in quotes' * isinstance(data, str)})"
    return None


def _changed(data: Any, checked: Any) -> str | None:
    """What is needed, where a scalar became one of another kind."""
    if isinstance(checked, bool):
        return None if isinstance(data, bool) else "true or false"
    if isinstance(checked, (int, float)):
        return "a number" if isinstance(data, (bool, str)) else None
    return None


def _inside(checked: Any, key: str) -> Any:
    """What a model, or a mapping, has of a key as it was written."""
    if isinstance(checked, dict):
        return checked.get(key)
    for name, info in getattr(type(checked), "model_fields", {}).items():
        if key in (name, info.alias):
            return getattr(checked, name)
    return None
